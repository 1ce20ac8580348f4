"""The transformer layers of a pipeline stage, for the backend of this machine, with core attention over segments.

The CPU layer is Megatron's local one with our attention and norm. Its sharded state dict has the same keys as the
Transformer Engine layer's, so checkpoints move between CPU and GPU.
"""

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from nemo.collections.llm.gpt.model.base import default_layer_spec

from nemo_longpo.backends import cpu

from .attention import CpuPairAttention


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, with the mark by which Megatron sums its gradient over sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def block_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """All layers of this pipeline stage."""
    return _cpu_block_spec(config, vp_stage) if cpu.is_active() else default_layer_spec(config, vp_stage)


def _cpu_block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    assert (config.normalization, config.qk_layernorm) == ("RMSNorm", False), "the CPU layer has plain RMSNorms"
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    layer.submodules.self_attention.submodules.core_attention = CpuPairAttention
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layers = [layer] * get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)
