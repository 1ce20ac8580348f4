"""What kind of value each field of a `config.json` or `tokenizer_config.json` must have, for the fields that are read.

Checked when the file is read, so that everything after it works with values of known types. Fields may be absent; which
ones a model needs, and which values of the right kind are supported, is decided elsewhere.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_longpo.errors import InputError

LARGEST = 2**31 - 1
"""Sizes and positions are 32-bit numbers in what reads them later."""


@dataclass(frozen=True)
class Kind:
    """`words` completes "it must be …"."""

    words: str
    fits: Callable[[Any], bool]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1e300


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_token(value: Any) -> bool:
    return isinstance(value.get("content") if isinstance(value, dict) else value, str)


def _is_decoder(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(re.fullmatch("[0-9]{1,9}", key) for key in value)
        and all(_is_token(token) for token in value.values())
    )


SIZE = Kind(f"a whole number from 1 to {LARGEST}", _is_size)
COUNT = Kind(f"a whole number from 0 to {LARGEST}", lambda value: value == 0 or _is_size(value))
NUMBER = Kind("a number from 0 to 1e300", _is_number)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
NAME = Kind("a string", lambda value: isinstance(value, str))
NAMES = Kind("a list of strings", _is_names)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
DECODER = Kind("an object of ids and tokens", _is_decoder)
TOKEN = Kind("a string, or an object with a string as its content", _is_token)

FIELDS = {
    "model_type": NAME,
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": SIZE,
    "num_attention_heads": SIZE,
    "max_position_embeddings": SIZE,
    "hidden_act": NAME,
    "rms_norm_eps": NUMBER,
    "initializer_range": NUMBER,
    "rope_theta": NUMBER,
    "tie_word_embeddings": SWITCH,
}

NULLABLE_FIELDS = {
    "architectures": NAMES,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
    "sliding_window": SIZE,
    "max_window_layers": COUNT,
    "use_sliding_window": SWITCH,
    "layer_types": NAMES,
    "rope_scaling": OBJECT,
    "rope_parameters": OBJECT,
    "dtype": NAME,
    "torch_dtype": NAME,
    "quantization_config": OBJECT,
    "dual_chunk_attention_config": OBJECT,
}


TOKENIZER_FIELDS = {
    "tokenizer_class": NAME,
    "model_max_length": NUMBER,
    "clean_up_tokenization_spaces": SWITCH,
    "add_bos_token": SWITCH,
    "add_eos_token": SWITCH,
    "padding_side": NAME,
    "truncation_side": NAME,
    "model_input_names": NAMES,
    "added_tokens_decoder": DECODER,
    **{f"{name}_token": TOKEN for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")},
}
"""Of a `tokenizer_config.json`; null says no more than leaving the field out."""


def check_fields(config: Mapping[str, Any], where: str) -> None:
    """Raises InputError with the file (`where`), the field and its value."""
    _check(config, FIELDS, where)
    _check({name: value for name, value in config.items() if value is not None}, NULLABLE_FIELDS, where)


def check_tokenizer_fields(settings: Mapping[str, Any], where: str) -> None:
    """Raises InputError with the file (`where`), the field and its value."""
    _check({name: value for name, value in settings.items() if value is not None}, TOKENIZER_FIELDS, where)


def _check(values: Mapping[str, Any], fields: Mapping[str, Kind], where: str) -> None:
    for name, kind in fields.items():
        if name in values and not kind.fits(values[name]):
            shown = repr(values[name])
            raise InputError(
                f"{where}: {name} is {shown if len(shown) < 80 else shown[:77] + '...'}; it must be {kind.words}"
            )
