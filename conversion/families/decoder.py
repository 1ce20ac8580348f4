"""The name table of the decoder that Mistral, Qwen2 and Llama share."""

from .family import Entry
from .fusions import Fusion

PER_LAYER = "model.layers.{layer}."


def decoder_entries(*, qkv_bias: bool) -> tuple[Entry, ...]:
    """RMSNorm, grouped-query attention, SwiGLU."""
    attention = PER_LAYER + "self_attn."
    mlp = PER_LAYER + "mlp."
    qkv_rows = {"q_proj": "query_size", "k_proj": "kv_size", "v_proj": "kv_size"}
    bias = Entry(
        "decoder.layers.self_attention.linear_qkv.bias",
        {f"{attention}{name}.bias": (rows,) for name, rows in qkv_rows.items()},
        Fusion.QKV,
    )
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
