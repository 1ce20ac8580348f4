"""Core attention over the trees of a micro-batch: causal attention for a trunk, ours for the branches after it.

Holds what the attention on GPUs (`te_attention`) and on the CPU share, then the CPU's attention and norm.

Shape legend: S local rows (of each tree the trunk, then its branches), B batch, H query heads of this rank, K key/value
heads of this rank, D head size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.transformer import MegatronModule, TransformerConfig, enums
from torch import Tensor, distributed as dist

from nemo_longpo.attention import branches, causal
from nemo_longpo.parallel import segments

from .topology import current_topology

Causal = Callable[[Tensor, Tensor, Tensor], Tensor]
Rows = tuple[Tensor, Tensor, Tensor]


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
    described, outputs = segments.from_tensor(trees), list[Tensor]()
    sizes = [rows for tree in described for rows in tree.rows_per_rank(cp_group.size()) if rows]
    split = (_split(tensor, sizes) for tensor in (query_SBHD, key_SBKD, value_SBKD))
    parts: Iterator[Rows] = zip(*split, strict=True)
    for tree, trunk in zip(described, parts, strict=False):
        outputs.append(attend_causally(*trunk))
        if tree.branch_rows:
            outputs.append(_attend_from_branches(trunk, next(parts), tree, cp_group, softmax_scale))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _split(rows: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Cut into all parts at once: its backward writes each gradient once, that of slices fills and adds whole ones."""
    return torch.split(rows, sizes) if len(sizes) > 1 else (rows,)


def _first(count: int, rows: Tensor) -> Tensor:
    """Leave out padding; a slice that takes all rows would still copy its gradient."""
    return rows if count == len(rows) else rows[:count]


def _attend_from_branches(
    trunk_SBHD: Rows, branch_SBHD: Rows, tree: segments.Segments, cp_group: dist.ProcessGroup, scale: float | None
) -> Tensor:
    """Return the branches' rows of one tree, from queries, keys and values of its local rows."""
    tokens = tree.trunk_tokens_on_rank(cp_group.size(), cp_group.rank())
    query, key, value = (tensor.squeeze(1) for tensor in branch_SBHD)  # one pair per micro-batch
    trunk_key, trunk_value = (_first(tokens, tensor).squeeze(1) for tensor in trunk_SBHD[1:])
    out = branches.branch_attention(query, key, value, trunk_key, trunk_value, tree.branch_slices(), cp_group, scale)
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
