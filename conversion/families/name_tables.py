"""The families that convert, and the name table of the decoder that they share.

A new family is one `Family` here and one test.
"""

from nemo_longpo.errors import InputError
from nemo_longpo.model_directory.model_config import ModelConfig

from .family import Entry, Family
from .fusions import Fusion

PER_LAYER = "model.layers.{layer}."


def decoder_entries(*, qkv_bias: bool = False, qk_norm: bool = False) -> tuple[Entry, ...]:
    """RMSNorm, grouped-query attention, SwiGLU. `qk_norm`: an RMSNorm of every head's query and key, one per layer."""
    attention = PER_LAYER + "self_attn."
    mlp = PER_LAYER + "mlp."
    qkv_rows = {"q_proj": "query_size", "k_proj": "kv_size", "v_proj": "kv_size"}
    bias = Entry(
        "decoder.layers.self_attention.linear_qkv.bias",
        {f"{attention}{name}.bias": (rows,) for name, rows in qkv_rows.items()},
        Fusion.QKV,
    )
    norms = [
        Entry(
            f"decoder.layers.self_attention.{side}_layernorm.weight", {f"{attention}{side}_norm.weight": ("head_size",)}
        )
        for side in ("q", "k")
    ]
    return (
        Entry("embedding.word_embeddings.weight", {"model.embed_tokens.weight": ("vocab", "hidden")}),
        Entry(
            "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
            {PER_LAYER + "input_layernorm.weight": ("hidden",)},
        ),
        Entry(
            "decoder.layers.self_attention.linear_qkv.weight",
            {f"{attention}{name}.weight": (rows, "hidden") for name, rows in qkv_rows.items()},
            Fusion.QKV,
        ),
        *([bias] if qkv_bias else []),
        *(norms if qk_norm else []),
        Entry(
            "decoder.layers.self_attention.linear_proj.weight", {attention + "o_proj.weight": ("hidden", "query_size")}
        ),
        Entry(
            "decoder.layers.mlp.linear_fc1.layer_norm_weight",
            {PER_LAYER + "post_attention_layernorm.weight": ("hidden",)},
        ),
        Entry(
            "decoder.layers.mlp.linear_fc1.weight",
            {f"{mlp}{name}.weight": ("ffn", "hidden") for name in ("gate_proj", "up_proj")},
            Fusion.ROWS,
        ),
        Entry("decoder.layers.mlp.linear_fc2.weight", {mlp + "down_proj.weight": ("hidden", "ffn")}),
        Entry("decoder.final_layernorm.weight", {"model.norm.weight": ("hidden",)}),
        Entry("output_layer.weight", {"lm_head.weight": ("vocab", "hidden")}, untied_only=True),
    )


FAMILIES = (
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        entries=decoder_entries(),
        nemo_module="mistral",
        nemo_model="MistralModel",
        nemo_config="MistralConfig7B",
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        entries=decoder_entries(qkv_bias=True),
        nemo_module="qwen2",
        nemo_model="Qwen2Model",
        nemo_config="Qwen2Config",
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        entries=decoder_entries(qk_norm=True),
        nemo_module="qwen3",
        nemo_model="Qwen3Model",
        nemo_config="Qwen3Config",
        nemo_positions=("seq_length", "max_position_embeddings"),
    ),
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        entries=decoder_entries(),
        nemo_module="llama",
        nemo_model="LlamaModel",
        nemo_config="LlamaConfig",
        nemo_llama3_config="Llama31Config",
    ),
)


def family_of(config: ModelConfig) -> Family:
    """The family that a `config.json` belongs to. Raises InputError if it is none of those above."""
    architectures = config.architectures or []
    for family in FAMILIES:
        if config.model_type == family.model_type and family.architecture in architectures:
            return family
    supported = ", ".join(f"{family.architecture} ({family.model_type})" for family in FAMILIES)
    found = f"{', '.join(architectures) or 'no architecture'} ({config.model_type or 'no model_type'})"
    raise InputError(f"{config.file} describes {found}; supported are {supported}")
