"""Core attention over the segments of a pair: a causal attention for the trunk, ours for the branches behind it.

What the GPU's (`te_attention`) and the CPU's (`cpu_attention`) share.

Shape legend: S local rows (trunk, then branches), B batch, H query heads of this rank, K key/value heads of this rank,
D head size.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_longpo.attention.branches import branch_attention
from nemo_longpo.parallel.segments import Segments


def attend_over_segments(
    query_SBHD: Tensor,
    key_SBKD: Tensor,
    value_SBKD: Tensor,
    segments: Tensor | None,
    attend_causally: Callable[[Tensor, Tensor, Tensor], Tensor],
    cp_group: dist.ProcessGroup,
    softmax_scale: float | None,
) -> Tensor:
    """`attend_causally(query, key, value)` for the trunk's rows, `branch_attention` for the rest; returns [S, B, H·D].

    `segments` is `Segments.to_tensor()`, which travels where Megatron expects an attention mask: through pipeline
    schedules and activation recompute it reaches every layer. Without it, all rows are a trunk.
    """
    described = None if segments is None else Segments.from_tensor(segments)
    if described is None or not described.branch_rows:
        return attend_causally(query_SBHD, key_SBKD, value_SBKD)

    trunk = described.trunk_rows // cp_group.size()
    trunk_out = attend_causally(query_SBHD[:trunk], key_SBKD[:trunk], value_SBKD[:trunk])
    tokens = described.trunk_tokens_on_rank(cp_group.size(), cp_group.rank())
    query, key, value = (tensor[:, 0] for tensor in (query_SBHD, key_SBKD, value_SBKD))  # one pair per micro-batch
    branch_out = branch_attention(
        query[trunk:],
        key[trunk:],
        value[trunk:],
        key[:tokens],
        value[:tokens],
        described.branch_slices(),
        cp_group,
        softmax_scale,
    )
    return torch.cat([trunk_out, branch_out.flatten(1)[:, None]])
