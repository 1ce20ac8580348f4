"""What conversion reads from, and may change in, a Hugging Face `config.json`."""

from collections.abc import Mapping
from typing import Any

from nemo_longpo.errors import InputError

from .rope import ScalingChoice, rope_settings, with_max_length, with_rope

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Names in `config.json` and on the command line → safetensors' names."""

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def dtype(config: Mapping[str, Any]) -> str:
    """`torch_dtype` (or transformers 5's `dtype`); float32 when the file names none, as in transformers 4."""
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**config, "dtype" if "dtype" in config else "torch_dtype": name}


def active_window(config: Mapping[str, Any]) -> int | None:
    """The sliding window if it hides anything within `max_position_embeddings`, else None.

    Qwen2.5 names a window and leaves it off (`use_sliding_window: false`).
    """
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return window if window is not None and window < config["max_position_embeddings"] else None


def without_window(config: Mapping[str, Any]) -> dict[str, Any]:
    if "use_sliding_window" in config:
        return {**config, "use_sliding_window": False}
    return {**config, "sliding_window": None}


def check_supported(config: Mapping[str, Any], where: str) -> None:
    """Refuse what the Megatron model would not compute. `where` names the file."""
    missing = [name for name in REQUIRED if not isinstance(config.get(name), int)]
    if missing:
        raise InputError(f"{where} has no whole number for {', '.join(missing)}")
    if config.get("quantization_config"):
        raise InputError(f"{where} describes a quantized model; convert the unquantized one")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{where}: hidden_act is {config['hidden_act']}; only silu is supported")
    rope_settings(config, where)
    if dtype(config) not in DTYPES:
        raise InputError(f"{where}: dtype {dtype(config)} is not one of {', '.join(DTYPES)}")
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    if heads % groups:
        raise InputError(f"{where}: {heads} attention heads do not divide over {groups} key-value heads")


def for_import(
    config: Mapping[str, Any],
    where: str,
    *,
    theta: float | None,
    scaling: ScalingChoice | None,
    max_length: int | None,
    full_attention: bool,
) -> dict[str, Any]:
    """The configuration of the policy: what was asked for is changed, everything else is kept."""
    changed = with_rope(config, where, theta, scaling)
    check_supported(changed, where)
    if max_length is not None:
        changed = with_max_length(changed, max_length, where)
    window = active_window(changed)
    if window is None:
        return changed
    if full_attention:
        return without_window(changed)
    raise InputError(
        f"{where}: attention is limited to a sliding window of {window} tokens, shorter than the "
        f"{changed['max_position_embeddings']} positions; pass --full-attention to train and export without the "
        "window, or --max-length of at most the window"
    )
