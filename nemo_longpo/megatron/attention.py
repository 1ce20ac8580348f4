"""Core attention over the trees of a micro-batch: causal attention for a trunk, ours for the branches after it.

Holds what the attention on GPUs (`te_attention`) and on the CPU share, then the CPU's attention and norm.

Shape legend: S local rows (of each tree the trunk, then its branches), B batch, H query heads of this rank, K key/value
heads of this rank, D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer import MegatronModule, TransformerConfig, enums
from torch import Tensor, distributed as dist

from nemo_longpo.attention import branches, causal
from nemo_longpo.parallel import segments

from .topology import current_topology

Causal = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_over_trees(
    query_SBHD: Tensor,
    key_SBKD: Tensor,
    value_SBKD: Tensor,
    trees: Tensor | None,
    attend_causally: Causal,
    cp_group: dist.ProcessGroup,
    softmax_scale: float | None,
) -> Tensor:
    """Return [S, B, H·D]: of each tree `attend_causally(query, key, value)` of its trunk's rows, `branch_attention` of
    the rest.

    `trees` is `segments.to_tensor(…)`. It is passed as Megatron's attention mask, because that reaches every layer
    through pipeline schedules and activation recompute. Without it, all rows are a trunk.
    """
    if trees is None:
        return attend_causally(query_SBHD, key_SBKD, value_SBKD)
    described, parts = segments.from_tensor(trees), list[Tensor]()
    for tree, rows in zip(described, segments.local_slices(described, cp_group.size()), strict=True):
        qkv = query_SBHD[rows], key_SBKD[rows], value_SBKD[rows]
        trunk = tree.trunk_rows // cp_group.size()
        parts.append(attend_causally(*(tensor[:trunk] for tensor in qkv)))
        if tree.branch_rows:
            parts.append(_attend_from_branches(*qkv, tree, cp_group, softmax_scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_from_branches(
    query_SBHD: Tensor,
    key_SBKD: Tensor,
    value_SBKD: Tensor,
    tree: segments.Segments,
    cp_group: dist.ProcessGroup,
    softmax_scale: float | None,
) -> Tensor:
    """Return the branches' rows of one tree whose S local rows are given."""
    trunk = tree.trunk_rows // cp_group.size()
    tokens = tree.trunk_tokens_on_rank(cp_group.size(), cp_group.rank())
    query, key, value = (tensor[:, 0] for tensor in (query_SBHD, key_SBKD, value_SBKD))  # one pair per micro-batch
    out = branches.branch_attention(
        query[trunk:],
        key[trunk:],
        value[trunk:],
        key[:tokens],
        value[:tokens],
        tree.branch_slices(),
        cp_group,
        softmax_scale,
    )
    return out.flatten(1)[:, None]


class CpuPairAttention(MegatronModule):
    """Exact attention on the CPU. Unlike Megatron's own without Transformer Engine, it allows context parallelism."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: enums.AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **unused: Any,
    ):
        super().__init__(config)
        assert (attention_type, attn_mask_type) == ("self", enums.AttnMaskType.causal), "only causal self-attention"
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
        """Return [S, B, H·D]; `attention_mask` carries the trees, see `attend_over_trees`."""
        return attend_over_trees(
            query_SBHD, key_SBKD, value_SBKD, attention_mask, self._attend_causally, self.cp_group, self.softmax_scale
        )

    def _attend_causally(self, query_SBHD: Tensor, key_SBKD: Tensor, value_SBKD: Tensor) -> Tensor:
        return causal.causal_attention(query_SBHD, key_SBKD, value_SBKD, self.cp_group, self.softmax_scale).flatten(2)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with the attribute that makes Megatron sum its gradient over sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
