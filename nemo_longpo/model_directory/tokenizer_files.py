"""The tokenizer's files of a model directory, checked before a library loads them."""

import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from nemo_longpo.errors import InputError, one_line
from nemo_longpo.typed_fields import Kind, Names, Number, build

from .downloads import ADVICE, check_download, read_model_json

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
SETTINGS = "tokenizer_config.json"


def _is_token(value: Any) -> bool:
    return isinstance(value.get("content") if isinstance(value, dict) else value, str)


def _is_decoder(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch("[0-9]{1,9}", key) and _is_token(token) for key, token in value.items()
    )


Token = Annotated[Any, Kind("a string, or an object with a string as its content", _is_token)]
Decoder = Annotated[dict[str, Any], Kind("an object of ids and tokens", _is_decoder)]


@dataclass(frozen=True, kw_only=True)
class TokenizerFields:
    """The fields of a `tokenizer_config.json` that libraries read; null says no more than leaving one out."""

    tokenizer_class: str | None = None
    model_max_length: Number | None = None
    clean_up_tokenization_spaces: bool | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    padding_side: str | None = None
    truncation_side: str | None = None
    model_input_names: Names | None = None
    added_tokens_decoder: Decoder | None = None
    bos_token: Token | None = None
    eos_token: Token | None = None
    unk_token: Token | None = None
    pad_token: Token | None = None
    sep_token: Token | None = None
    cls_token: Token | None = None
    mask_token: Token | None = None


_TEXTS = ("tokenizer.model", "merges.txt", "chat_template.jinja")
_OBJECTS = (SETTINGS, "tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json")


def installed_transformers() -> int:
    """The major version."""
    return int(version("transformers").partition(".")[0])


def check_tokenizer_files(directory: Path, transformers: int) -> None:
    """Check that there is a tokenizer, that its files are complete, and that loading it runs no code of the directory.

    `transformers` is the major version of the library that will load it. Raises InputError, naming the file, if not.
    """
    if not any(os.path.lexists(directory / name) for name in TOKENIZERS):
        raise InputError(f"{directory} has no tokenizer (none of {', '.join(TOKENIZERS)})")
    for name in _TEXTS:
        if os.path.lexists(directory / name):
            check_download(directory / name)
    for name in _OBJECTS:
        if os.path.lexists(directory / name):
            read_model_json(directory / name)
    if os.path.lexists(directory / SETTINGS):
        _check_settings(directory / SETTINGS, transformers)
    if os.path.lexists(directory / "tokenizer.json"):
        _check_loads(directory / "tokenizer.json")


def _check_settings(path: Path, transformers: int) -> None:
    settings = read_model_json(path)
    build(TokenizerFields, settings, str(path), ADVICE, exact=False)
    if settings.get("auto_map"):
        raise InputError(
            f"{path}: auto_map names code that comes with the model, which is never run; remove the field if the "
            "tokenizer needs none"
        )
    of_5 = settings.get("tokenizer_class") == "TokenizersBackend" or isinstance(
        settings.get("extra_special_tokens"), list
    )
    if of_5 and transformers < 5:
        raise InputError(
            f"{path} is of transformers 5, which transformers {transformers} (that of NeMo) cannot load; set "
            "tokenizer_class to PreTrainedTokenizerFast in it and rename extra_special_tokens to "
            "additional_special_tokens, which leaves all tokens as they are"
        )


def _check_loads(path: Path) -> None:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise InputError(
            f"{path} cannot be read by tokenizers {version('tokenizers')} ({one_line(error)}); it is damaged, or was "
            "saved by a newer version: download it again, or save it with this one"
        ) from error
