"""The transformer layer for machines without an accelerator: Megatron's local layer with our attention and norm.

Its sharded state dict has the same keys as the Transformer Engine layer's, so checkpoints move between CPU and GPU.

Shape legend: S local rows, B batch, H query heads of this rank, K key/value heads of this rank, D head size.
"""

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor

from nemo_longpo.attention.causal import causal_attention

from .topology import current_topology


class CausalCoreAttention(MegatronModule):
    """Core attention that works under context parallelism, which Megatron's own DotProductAttention refuses."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **unused,
    ):
        super().__init__(config)
        assert (attention_type, attn_mask_type) == ("self", AttnMaskType.causal), "only causal self-attention"
        self.softmax_scale = softmax_scale
        self.cp_group = current_topology().cp_group

    def forward(
        self, query_SBHD: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, attention_mask=None, **unused
    ) -> Tensor:
        """Returns [S, B, H·D]; the mask is causal by construction, whatever is passed."""
        out_SBHD = causal_attention(query_SBHD, key_SBKD, value_SBKD, self.cp_group, self.softmax_scale)
        return out_SBHD.flatten(2)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, with the mark by which Megatron sums its gradient over sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def cpu_block_spec(config: TransformerConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """All layers of this pipeline stage, for the CPU backend."""
    assert (config.normalization, config.qk_layernorm) == ("RMSNorm", False), "the CPU layer has plain RMSNorms"
    layer = get_gpt_layer_local_spec(normalization=config.normalization)
    layer.submodules.self_attention.submodules.core_attention = CausalCoreAttention
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    layers = [layer] * get_num_layers_to_build(config, vp_stage)
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=RMSNorm)
