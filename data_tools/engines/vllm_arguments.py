"""What vLLM is started with, and whether it then runs with that."""

from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError

from ..settings import EngineSettings, VllmSettings
from .hf_engine import DTYPES, set_rope_theta

_CPU_KV_CACHE_BYTES = 4 << 30

# RoPE types whose base is a number of its own; elsewhere (longrope) other numbers were fitted to one base.
_CHANGEABLE_BASE = {"default", "linear", "dynamic", "yarn", "llama3"}
# RoPE types whose angles do not depend on max_position_embeddings.
_CHANGEABLE_LENGTH = {"default", "linear", "yarn", "llama3"}


def engine_arguments(
    directory: Path, config: dict[str, Any], common: EngineSettings, own: VllmSettings, *, on_cpu: bool
) -> dict[str, Any]:
    """What vLLM is started with: nothing that matters is left to its defaults.

    Raises InputError if config.json lacks what is needed, or its RoPE settings do not allow the change asked for.
    """
    for name in ("max_position_embeddings", "vocab_size"):
        if not isinstance(config.get(name), int):
            raise InputError(f"{directory}/config.json has no whole number '{name}'; use a decoder-only language model")
    length = own.max_model_len or config["max_position_embeddings"]
    _check_rope_changes(directory, config, common.rope_theta, length)
    arguments = {
        "model": str(directory),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # vLLM's own defaults instead of the model's file
        "dtype": _dtype(directory, config) if common.dtype == "auto" else common.dtype,
        "max_model_len": length,
        "max_num_seqs": own.max_num_seqs,
        "max_num_batched_tokens": own.max_num_batched_tokens,
        "enable_prefix_caching": True,
        "tensor_parallel_size": own.tensor_parallel_size,
        "hf_overrides": partial(_override, rope_theta=common.rope_theta, length=length),
    }
    if not on_cpu:
        return arguments | {
            "gpu_memory_utilization": own.gpu_memory_utilization,
            "kv_cache_memory_bytes": own.kv_cache_memory_bytes,
        }
    batched = own.max_num_batched_tokens or max(length, own.max_num_seqs)
    return arguments | {
        "max_num_batched_tokens": batched,
        "enable_chunked_prefill": batched < length,
        "enforce_eager": True,
        "kv_cache_memory_bytes": own.kv_cache_memory_bytes or _CPU_KV_CACHE_BYTES,
    }


def check_loaded(loaded: Any, max_model_len: int, rope_theta: float | None) -> None:
    """vLLM ignores some overrides without a word, so what it runs with is compared with what was asked for."""
    text = loaded.hf_text_config
    base = (text.rope_parameters or {}).get("rope_theta")
    if loaded.max_model_len != max_model_len or text.max_position_embeddings < max_model_len:
        raise InputError(
            f"vLLM runs the model with max_model_len {loaded.max_model_len} and max_position_embeddings "
            f"{text.max_position_embeddings} instead of {max_model_len}; use the vLLM version of requirements/"
        )
    if rope_theta is not None and base != rope_theta:
        raise InputError(
            f"vLLM runs the model with rope_theta {base} instead of {rope_theta}; use the vLLM version of requirements/"
        )


def _override(config: Any, *, rope_theta: float | None, length: int) -> Any:
    """Applied by vLLM to the model's configuration, and once to an empty one."""
    if rope_theta is not None:
        set_rope_theta(config, rope_theta)
    if length > getattr(config, "max_position_embeddings", length):
        config.max_position_embeddings = length
    return config


def expected_rope_theta(config: dict[str, Any], common: EngineSettings) -> float | None:
    """The base that the model must run with; None if neither the settings nor config.json name one."""
    own = config.get("rope_theta", _rope_settings(config).get("rope_theta"))
    return own if common.rope_theta is None else common.rope_theta


def _rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 or 4 writes them to config.json."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _check_rope_changes(directory: Path, config: dict[str, Any], rope_theta: float | None, length: int) -> None:
    found = _rope_settings(config)
    several = any(isinstance(value, dict) for value in found.values())
    kind = "several" if several else str(found.get("rope_type", found.get("type", "default")))
    if rope_theta is not None and kind not in _CHANGEABLE_BASE:
        raise InputError(
            f"{directory} has RoPE settings of type {kind!r}, whose base cannot change; leave out rope_theta"
        )
    own = config["max_position_embeddings"]
    if length > own and kind not in _CHANGEABLE_LENGTH:
        raise InputError(
            f"{directory} has RoPE settings of type {kind!r}, which depend on the model's own length; set "
            f"max_model_len to at most {own}"
        )


def _dtype(directory: Path, config: dict[str, Any]) -> str:
    """The checkpoint's own; vLLM's "auto" would run a float32 model in bfloat16."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if name not in DTYPES:
        raise InputError(f"{directory} is stored as {name}; choose one of {', '.join(DTYPES)} with dtype")
    return name
