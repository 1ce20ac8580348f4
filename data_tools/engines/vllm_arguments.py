"""What vLLM is started with, and whether it then runs with that."""

from functools import partial
from pathlib import Path
from typing import Any

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from ..settings import EngineSettings, VllmSettings
from .hf_engine import DTYPES, set_rope_theta

_CPU_KV_CACHE_BYTES = 4 << 30

# RoPE types whose base is a number of its own; elsewhere (longrope) other numbers were fitted to one base.
_CHANGEABLE_BASE = {"default", "linear", "dynamic", "yarn", "llama3"}
# RoPE types whose angles do not depend on max_position_embeddings.
_CHANGEABLE_LENGTH = {"default", "linear", "yarn", "llama3"}


def engine_arguments(
    directory: Path, config: ModelConfig, common: EngineSettings, own: VllmSettings, *, on_cpu: bool
) -> dict[str, Any]:
    """What vLLM is started with: nothing that matters is left to its defaults.

    Raises InputError if config.json lacks what is needed, or its RoPE settings do not allow the change asked for.
    """
    positions, _ = config.require("max_position_embeddings", "vocab_size")
    length = own.max_model_len or positions
    _check_rope_changes(directory, config, common.rope_theta, length, positions)
    dtype = config.stored_dtype if common.dtype == "auto" else common.dtype  # vLLM's "auto" runs float32 in bfloat16
    if dtype not in DTYPES:
        raise InputError(f"{directory} is stored as {dtype}; choose one of {', '.join(DTYPES)} with dtype")
    arguments = {
        "model": str(directory),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # vLLM's own defaults instead of the model's file
        "dtype": dtype,
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


def expected_rope_theta(config: ModelConfig, common: EngineSettings) -> float | None:
    """The base that the model must run with; None if neither the settings nor config.json name one."""
    return config.rope_fields.get("rope_theta", config.rope_theta) if common.rope_theta is None else common.rope_theta


def _check_rope_changes(directory: Path, config: ModelConfig, rope_theta: float | None, length: int, own: int) -> None:
    """`own` is the model's own number of positions."""
    several = any(isinstance(value, dict) for value in config.rope_fields.values())
    kind = "several" if several else config.rope_type
    if rope_theta is not None and kind not in _CHANGEABLE_BASE:
        raise InputError(
            f"{directory} has RoPE settings of type {kind!r}, whose base cannot change; leave out rope_theta"
        )
    if length > own and kind not in _CHANGEABLE_LENGTH:
        raise InputError(
            f"{directory} has RoPE settings of type {kind!r}, which depend on the model's own length; set "
            f"max_model_len to at most {own}"
        )
