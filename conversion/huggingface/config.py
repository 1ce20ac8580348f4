"""What conversion reads from, and may change in, a Hugging Face `config.json`."""

from collections.abc import Mapping
from typing import Any

from nemo_longpo.errors import InputError

from ..families.family import Family
from ..families.known import family_of
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

COMPUTED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "hidden_act": (("silu", "swish"), "only silu (SwiGLU layers) is supported"),
    "attention_bias": ((False, None), "attention has no biases but those of Qwen2"),
    "mlp_bias": ((False, None), "feed-forward layers have no biases"),
    "partial_rotary_factor": ((1, None), "only heads that are rotated as a whole are supported"),
    "quantization_config": ((None, {}), "the file describes a quantized model; convert the unquantized one"),
    "auto_map": ((None, {}), "code that comes with a model is never run; remove the field if the model needs none"),
    "per_layer_config": ((None, {}), "only models whose layers are all alike are supported"),
}
"""Field → the values under which the model computes what the Megatron model computes, and what to say of others."""

DUAL_CHUNKS = "dual_chunk_attention_config"
"""Qwen2.5-1M's attention in chunks, for engines that have it (vLLM). Neither Megatron nor `transformers` computes it;
both read the file as if it were not there."""

LAYER_TYPES = ("full_attention", "sliding_attention")


def dtype(config: Mapping[str, Any]) -> str:
    """`torch_dtype` (or transformers 5's `dtype`); float32 when the file names none, as in transformers 4."""
    return config.get("dtype") or config.get("torch_dtype") or "float32"


def with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    present = [field for field in ("dtype", "torch_dtype") if field in config]
    return {**config, **dict.fromkeys(present or ["torch_dtype"], name)}


def active_window(config: Mapping[str, Any], family: Family) -> int | None:
    """The sliding window, if some layer has it and it hides anything within `max_position_embeddings`; else None.

    Qwen2 has a switch, and layers below `max_window_layers` without a window; in Mistral every layer has one.
    """
    known = {**family.defaults, **config}
    window = known.get("sliding_window")
    if window is None or window >= known["max_position_embeddings"]:
        return None
    if "use_sliding_window" not in family.defaults:
        return window
    if not known["use_sliding_window"]:
        return None
    types = known.get("layer_types")
    if types is not None:
        return window if "sliding_attention" in types else None
    # With null, transformers builds no layers at all; read as 0, an import asks what to do about the window.
    return window if (known["max_window_layers"] or 0) < known["num_hidden_layers"] else None


def with_full_attention(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """A copy in which every layer attends to everything before it."""
    whole = {name: value for name, value in config.items() if name != DUAL_CHUNKS}
    return whole if active_window(whole, family) is None else _without_window(whole, family)


def _without_window(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    switch = {"use_sliding_window": False} if "use_sliding_window" in family.defaults else {"sliding_window": None}
    types = config.get("layer_types")
    # transformers fails on layers that are to slide when there is no window.
    return {**config, **switch, **({"layer_types": ["full_attention"] * len(types)} if types else {})}


def check_supported(config: Mapping[str, Any], where: str) -> None:
    """Refuse what the Megatron model would not compute. `where` names the file."""
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise InputError(f"{where} has no whole number for {', '.join(missing)}")
    for name, (supported, advice) in COMPUTED.items():
        if config.get(name, supported[0]) not in supported:
            raise InputError(f"{where}: {name} is {config[name]}; {advice}")
    unknown = set(config.get("layer_types") or ()) - {*LAYER_TYPES}
    if unknown:
        raise InputError(
            f"{where}: layer_types names {', '.join(sorted(unknown))}; supported are {', '.join(LAYER_TYPES)}"
        )
    rope_settings(config, where)
    if dtype(config) not in DTYPES:
        raise InputError(f"{where}: dtype {dtype(config)} is not one of {', '.join(DTYPES)}")
    sizes = family_of(config, where).geometry(config)
    if sizes.heads % sizes.groups:
        raise InputError(f"{where}: {sizes.heads} attention heads do not divide over {sizes.groups} key-value heads")


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
    family = family_of(config, where)
    if full_attention:
        return with_full_attention(changed, family)
    if changed.get(DUAL_CHUNKS):
        raise InputError(
            f"{where}: {DUAL_CHUNKS} asks for attention in chunks, which neither Megatron nor transformers computes; "
            "pass --full-attention to train and export without it"
        )
    window = active_window(changed, family)
    if window is None:
        return changed
    raise InputError(
        f"{where}: attention is limited to a sliding window of {window} tokens, shorter than the "
        f"{changed['max_position_embeddings']} positions; pass --full-attention to train and export without the "
        "window, or --max-length of at most the window"
    )
