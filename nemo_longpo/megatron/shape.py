"""The architecture of a NeMo config as the planner counts it."""

from nemo.collections.llm.gpt.model.base import GPTConfig

from nemo_longpo.costs.model_shape import ModelShape


def model_shape(config: GPTConfig) -> ModelShape:
    return ModelShape(
        layers=config.num_layers,
        hidden=config.hidden_size,
        ffn=config.ffn_hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_query_groups,
        head_size=config.kv_channels,
        vocab=config.vocab_size,
        tied=config.share_embeddings_and_output_weights,
        bias=config.add_qkv_bias,
    )
