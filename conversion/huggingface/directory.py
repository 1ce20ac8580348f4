"""A Hugging Face model directory: its configuration, and the small files that travel with its weights."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from .config_fields import check_fields
from .downloads import check_download

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
COMPANION_SUFFIXES = {".json", ".jinja", ".model", ".txt"}
COMPANION_NAMES = {"LICENSE", "NOTICE", "LICENSE.md", "NOTICE.md"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    check_download(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """In the layout of `transformers` (two spaces, final newline), keeping the order of the fields."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class HfDirectory:
    """Read access to a Hugging Face model directory."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> "HfDirectory":
        if not path.is_dir():
            raise InputError(f"{path} is not a directory; give the directory of a downloaded Hugging Face model")
        return cls(path)

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        config = read_json(path)
        check_fields(config, str(path))
        return config

    def companions(self) -> list[Path]:
        """Configuration, tokenizer, chat template and licence files: everything small that defines the model."""
        extra = self.path / "additional_chat_templates"
        if extra.is_dir():
            raise InputError(f"{extra} holds named chat templates, which are not supported yet; move it away")
        return sorted(
            path
            for path in self.path.iterdir()
            if path.is_file() and (path.suffix in COMPANION_SUFFIXES or path.name in COMPANION_NAMES)
        )

    def copy_companions(self, target: Path) -> None:
        for path in self.companions():
            shutil.copyfile(path, target / path.name)

    def require_tokenizer(self) -> None:
        found = [self.path / name for name in TOKENIZERS if os.path.lexists(self.path / name)]
        if not found:
            raise InputError(f"{self.path} has no tokenizer (none of {', '.join(TOKENIZERS)})")
        for path in found:
            check_download(path)
