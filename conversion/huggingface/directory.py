"""A Hugging Face model directory: its configuration, and the small files that travel with its weights."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import downloads, model_config, tokenizer_files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
NAMED_TEMPLATES = "additional_chat_templates"
LARGEST_COMPANION = 100_000_000
"""Bytes. What lies beside the weights is copied into every checkpoint of a training run; the largest tokenizers have
30 MB."""

WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack", ".npz", ".tflite"),
    *(".onnx", ".onnx_data", ".nemo", ".tar", ".gz", ".zip"),
}
CODE = {".py", ".pyc", ".ipynb", ".sh"}
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf", ".html"}
"""Suffixes of what stays behind."""


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """In the layout of `transformers` (two spaces, final newline), keeping the order of the fields."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_companion(path: Path) -> bool:
    """Whether a file travels with the weights: it is not weights itself, not code (which is never run), no model card
    with its pictures, not hidden. `params.json` is the configuration of Mistral's own weight files.
    """
    if path.is_dir() or path.name.startswith(".") or path.name == "params.json":
        return False
    is_other_index = path.name.endswith(".index.json") and path.name != INDEX
    return (
        not is_other_index
        and not path.stem.upper().startswith("README")
        and (path.suffix.lower() not in WEIGHTS | CODE | PICTURES)
    )


@dataclass(frozen=True)
class HfDirectory:
    """Read access to a Hugging Face model directory."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> "HfDirectory":
        if not path.is_dir():
            raise InputError(f"{path} is not a directory; give the directory of a downloaded Hugging Face model")
        adapter = path / "adapter_config.json"
        if adapter.exists():
            raise InputError(
                f"{adapter} makes {path} an adapter to another model; merge the two (merge_and_unload in peft, then "
                "save_pretrained) and convert the result"
            )
        if hint := downloads.cache_hint(path):
            raise InputError(f"{path} holds no config.json{hint}")
        return cls(path)

    @cached_property
    def config(self) -> model_config.ModelConfig:
        return model_config.ModelConfig.read(self.path)

    @property
    def remark(self) -> str | None:
        """One line on what an export has to take from elsewhere, or leave out; None where all is in the directory."""
        return None

    def companions(self) -> list[Path]:
        """Configuration, tokenizer, chat template, licence: every file that `is_companion`. Links are followed.

        Raises InputError if one cannot be kept in a NeMo checkpoint, which keeps a directory of plain files.
        """
        templates = self.path / NAMED_TEMPLATES
        if templates.is_dir():
            raise InputError(
                f"{templates} holds named chat templates, and NeMo keeps no directories within a tokenizer's; move it "
                "away, and later into the exported model"
            )
        found = sorted(path for path in self.path.iterdir() if is_companion(path))
        for path in found:
            downloads.check_download(path)
            if path.stat().st_size > LARGEST_COMPANION:
                raise InputError(
                    f"{path} has {path.stat().st_size / 1e6:.0f} MB, and files beside the weights are copied into "
                    "every checkpoint; move it away if it is not the tokenizer's"
                )
        return found

    def copy_companions(self, target: Path) -> None:
        for path in self.companions():
            shutil.copyfile(path, target / path.name)

    def require_tokenizer(self, transformers: int = 4) -> None:
        """Raises InputError if there is no tokenizer that a trainer can load without running code of the directory.

        `transformers` is the major version of that library beside the trainer.
        """
        tokenizer_files.check_tokenizer_files(self.path, transformers=transformers)
