"""Whether Megatron computes what `transformers` computes from a `config.json`."""

from collections.abc import Mapping

from nemo_longpo.errors import InputError

from .model_config import ModelConfig

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
    "use_qk_norm": ((False, None), "queries and keys have norms in Qwen3 only"),
    "mlp_bias": ((False, None), "feed-forward layers have no biases"),
    "partial_rotary_factor": ((1, None), "only heads that are rotated as a whole are supported"),
    "quantization_config": ((None, {}), "the file describes a quantized model; convert the unquantized one"),
    "auto_map": ((None, {}), "code that comes with a model is never run; remove the field if the model needs none"),
    "per_layer_config": ((None, {}), "only models whose layers are all alike are supported"),
}
"""Field → the values under which the model computes what the Megatron model computes, and what to say of others."""

LAYER_TYPES = ("full_attention", "sliding_attention")


def require_computed(config: ModelConfig) -> None:
    """Raises InputError if a field is missing, or has a value that Megatron's model has nothing for."""
    file = config.file
    config.require(*REQUIRED)
    for name, (supported, advice) in COMPUTED.items():
        if config.raw.get(name, supported[0]) not in supported:
            raise InputError(f"{file}: {name} is {config.raw[name]}; {advice}")
    unknown = set(config.layer_types or ()) - {*LAYER_TYPES}
    if unknown:
        raise InputError(
            f"{file}: layer_types names {', '.join(sorted(unknown))}; supported are {', '.join(LAYER_TYPES)}"
        )
    _ = config.rope  # raises InputError
