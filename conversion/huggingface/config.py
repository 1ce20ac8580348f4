"""Check and change a Hugging Face `config.json` for conversion.

transformers 4 keeps the rotary base in `rope_theta` and the scaling in `rope_scaling`, transformers 5 both in
`rope_parameters`; a change is written wherever the file has it.
"""

from collections.abc import Mapping
from typing import Any, Literal

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.errors import InputError
from nemo_longpo.model_directory import computed, model_config, rope_settings

from ..families.name_tables import family_of

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Names in `config.json` and on the command line → safetensors' names."""

DUAL_CHUNKS = "dual_chunk_attention_config"
"""Qwen2.5-1M's attention in chunks, for engines that have it (vLLM). Neither Megatron nor `transformers` computes it;
both read the file as if it were not there."""

ScalingChoice = Literal["keep", "none"] | Mapping[str, Any]
"""What becomes of a model's RoPE scaling: it stays, it goes, or another `rope_scaling` object takes its place."""


def check_supported(config: model_config.ModelConfig) -> ModelShape:
    """Return a model's sizes. Raises InputError if Megatron does not compute the model as `transformers` does."""
    file = config.file
    computed.require_computed(config)
    if config.stored_dtype not in DTYPES:
        raise InputError(f"{file}: dtype {config.stored_dtype} is not one of {', '.join(DTYPES)}")
    family_of(config)
    return ModelShape.of(config)


def for_import(
    config: model_config.ModelConfig,
    *,
    theta: float | None = None,
    scaling: ScalingChoice | None = None,
    max_length: int | None = None,
    full_attention: bool = False,
) -> model_config.ModelConfig:
    """Return the configuration of the policy: the requested changes are made, everything else is kept.

    Raises InputError if the model is not supported, or if the change needs a decision that was not given.
    """
    changed = with_rope(config, theta, scaling)
    shape = check_supported(changed)
    if max_length is not None:
        changed = with_max_length(changed, max_length)
        if max_length > (config.max_position_embeddings or 0):
            changed.rope.require_reach(
                max_length, shape.head_size, config.file, length="--max-length", base="--rope-theta"
            )
    if full_attention:
        return with_full_attention(changed)
    if changed.dual_chunk_attention_config:
        raise InputError(
            f"{config.file}: {DUAL_CHUNKS} asks for attention in chunks, which neither Megatron nor transformers "
            "computes; pass --full-attention to train and export without it"
        )
    if changed.active_window is None:
        return changed
    raise InputError(
        f"{config.file}: attention is limited to a sliding window of {changed.active_window} tokens, shorter than the "
        f"{changed.max_position_embeddings} positions; pass --full-attention to train and export without the "
        "window, or --max-length of at most the window"
    )


def megatron_fields(config: model_config.ModelConfig, model_shape: ModelShape) -> dict[str, Any]:
    """Fields of a Megatron model's configuration that both trainers know, of a Hugging Face one.

    `vocab_size` is the exact number of embedding rows: nothing is padded.
    """
    linear = config.scaling if isinstance(config.scaling, rope_settings.LinearScaling) else None
    return {
        "num_layers": model_shape.layers,
        "hidden_size": model_shape.hidden,
        "ffn_hidden_size": model_shape.ffn,
        "num_attention_heads": model_shape.heads,
        "num_query_groups": model_shape.kv_heads,
        "kv_channels": model_shape.head_size,
        "vocab_size": model_shape.vocab,
        "make_vocab_size_divisible_by": 1,
        "share_embeddings_and_output_weights": model_shape.tied,
        "rotary_base": config.theta,
        "seq_len_interpolation_factor": linear.factor if linear else None,
        "layernorm_epsilon": 1e-6 if config.rms_norm_eps is None else config.rms_norm_eps,
        "init_method_std": 0.02 if config.initializer_range is None else config.initializer_range,
        "window_size": None,
    }


def with_dtype(config: model_config.ModelConfig, name: str) -> model_config.ModelConfig:
    """The same model stored in another dtype, under the names that the file has for it."""
    present = [field for field in ("dtype", "torch_dtype") if field in config.raw]
    return config.changed(dict.fromkeys(present or ["torch_dtype"], name))


def with_full_attention(config: model_config.ModelConfig) -> model_config.ModelConfig:
    """A copy in which every layer attends to everything before it."""
    if DUAL_CHUNKS in config.raw:
        whole = {name: value for name, value in config.raw.items() if name != DUAL_CHUNKS}
        config = model_config.ModelConfig.parse(whole, config.file)
    if config.active_window is None:
        return config
    switch = {"use_sliding_window": False} if config.has_window_switch else {"sliding_window": None}
    # transformers fails on sliding layers without a window.
    types = {"layer_types": ["full_attention"] * len(config.layer_types)} if config.layer_types else {}
    return config.changed({**switch, **types})


def with_rope(
    config: model_config.ModelConfig, theta: float | None, scaling: ScalingChoice | None
) -> model_config.ModelConfig:
    """A copy with another base or scaling. A new base under an old scaling needs a choice of the scaling."""
    if scaling == "none":
        config = with_rope_scaling(config, None)
    elif scaling is None or scaling == "keep":
        if scaling is None and theta not in (None, config.theta) and config.scaling is not None:
            raise InputError(
                f"{config.file}: the model's rope scaling was made for another base than --rope-theta; pass "
                "--rope-scaling none to drop the scaling, or --rope-scaling keep to apply it to the new base"
            )
    else:
        if "rope_theta" in scaling:
            raise InputError("--rope-scaling holds rope_theta, which is not part of the scaling; pass --rope-theta")
        rope_settings.parse_scaling(scaling, "--rope-scaling", config.max_position_embeddings)
        config = with_rope_scaling(config, scaling)
    return config if theta is None else with_rope_theta(config, theta)


def with_rope_theta(config: model_config.ModelConfig, theta: float) -> model_config.ModelConfig:
    """A copy with another rotary base; unchanged when it has that value already."""
    if config.theta == theta:
        return config
    changes: dict[str, Any] = {"rope_theta": theta} if config.rope_is_read_by_4 else {}
    if config.rope_scaling and "rope_theta" in config.rope_scaling:
        changes["rope_scaling"] = {**config.rope_scaling, "rope_theta": theta}
    if config.rope_parameters:
        changes["rope_parameters"] = {**config.rope_parameters, "rope_theta": theta}
    return config.changed(changes)


def with_rope_scaling(config: model_config.ModelConfig, settings: Mapping[str, Any] | None) -> model_config.ModelConfig:
    """A copy with another RoPE scaling, or without; the rotary base stays."""
    changes: dict[str, Any] = {}
    if config.rope_parameters:
        base = {name: value for name, value in config.rope_parameters.items() if name == "rope_theta"}
        changes["rope_parameters"] = {**base, **(settings or {"rope_type": "default"})}
    if config.rope_scaling or (settings and config.rope_is_read_by_4):
        changes["rope_scaling"] = dict(settings) if settings else None
    return config.changed(changes)


def with_max_length(config: model_config.ModelConfig, length: int) -> model_config.ModelConfig:
    """A copy with another `max_position_embeddings`; a scaling whose original length was the old one keeps that."""
    changed = config.changed({"max_position_embeddings": length})
    if changed.scaling == config.scaling:
        return changed
    original = {"original_max_position_embeddings": config.max_position_embeddings}
    return with_rope_scaling(changed, {**config.rope_fields, **original})
