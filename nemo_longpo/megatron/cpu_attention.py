"""Core attention and norm on the CPU: exact causal attention for the trunk, ours for the branches behind it.

Shape legend: S local rows (trunk, then branches), B batch, H query heads of this rank, K key/value heads of this rank,
D head size.
"""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nemo_longpo.attention.causal import causal_attention

from .attention import attend_over_segments
from .topology import current_topology


class CpuPairAttention(MegatronModule):
    """Works under context parallelism, which Megatron's own attention without Transformer Engine refuses."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **unused: Any,
    ):
        super().__init__(config)
        assert (attention_type, attn_mask_type) == ("self", AttnMaskType.causal), "only causal self-attention"
        self.softmax_scale = softmax_scale
        self.cp_group = current_topology().cp_group

    def forward(
        self,
        query_SBHD: Tensor,
        key_SBKD: Tensor,
        value_SBKD: Tensor,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """Returns [S, B, H·D]; `attention_mask` carries the segments, see `attend_over_segments`."""
        return attend_over_segments(
            query_SBHD, key_SBKD, value_SBKD, attention_mask, self._attend_causally, self.cp_group, self.softmax_scale
        )

    def _attend_causally(self, query_SBHD: Tensor, key_SBKD: Tensor, value_SBKD: Tensor) -> Tensor:
        return causal_attention(query_SBHD, key_SBKD, value_SBKD, self.cp_group, self.softmax_scale).flatten(2)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, with the mark by which Megatron sums its gradient over sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
