"""Attention of branches that continue one trunk, each as if it were the only one, under context parallelism.

Every rank keeps its rows of the trunk's keys and values and attends to them with the queries of *all* branch rows,
which are few. This gives partial results. The rank that holds a row merges them by their log-sum-exp, together with
the row's attention to its own branch. Traffic grows with the branches, never with the trunk:
`planning.speed.branch_traffic` counts it.

Shape legend: n branch rows of this rank, N = n · W branch rows of all ranks, M trunk rows of this rank, H query heads,
K key/value heads, D head size, W ranks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_longpo.parallel.collectives import Group, gather_rows, place, send_home

from .kernels import partial_attention, partial_attention_backward


def branch_attention(
    query_nHD: Tensor,
    key_nKD: Tensor,
    value_nKD: Tensor,
    trunk_key_MKD: Tensor,
    trunk_value_MKD: Tensor,
    branches: Sequence[slice],
    group: Group = None,
    scale: float | None = None,
) -> Tensor:
    """Return softmax attention of every branch to the whole trunk and causally to itself, this rank's rows [n, H, D].

    Equals, per branch, the last rows of causal attention over trunk + branch, and so do all gradients.

    Args:
        query_nHD, key_nKD, value_nKD: this rank's contiguous share of all branches' rows, positions applied.
        trunk_key_MKD, trunk_value_MKD: the trunk's rows on this rank, in any order, without padding; may be empty.
        branches: each branch's rows among the rows of all ranks; together they cover all of them.
        scale: of the scores; 1/√D by default.
    """
    if scale is None:
        scale = query_nHD.shape[-1] ** -0.5
    return _BranchAttention.apply(  # type: ignore[no-untyped-call, no-any-return]
        query_nHD, key_nKD, value_nKD, trunk_key_MKD, trunk_value_MKD, branches, group, scale
    )


class _BranchAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, trunk_key: Tensor, trunk_value: Tensor, *settings: Any
    ) -> Tensor:
        branches, group, scale = ctx.settings = settings
        q_NHD, k_NKD, v_NKD = _of_all_ranks([query, key, value], group)
        trunk_out, trunk_lse = partial_attention(q_NHD, trunk_key, trunk_value, False, scale)
        everything = slice(0, len(query))
        parts = [
            (everything, out, lse)
            for out, lse in zip(send_home(trunk_out, group), send_home(trunk_lse, group), strict=True)
        ]
        for rows, keys, causal in _own_branch(branches, len(query), place(group)[0]):
            parts.append((rows, *partial_attention(query[rows], k_NKD[keys], v_NKD[keys], causal, scale)))
        out_nHD, lse_nH = _merge(parts)
        ctx.save_for_backward(query, key, value, trunk_key, trunk_value, out_nHD, lse_nH)
        return out_nHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, trunk_key, trunk_value, out, lse = ctx.saved_tensors
        branches, group, scale = ctx.settings
        q_NHD, k_NKD, v_NKD, out_NHD, grad_NHD = _of_all_ranks([query, key, value, out, grad], group)
        to_trunk, grad_trunk_key, grad_trunk_value = partial_attention_backward(
            grad_NHD, q_NHD, trunk_key, trunk_value, out_NHD, gather_rows(lse, group), False, scale
        )
        grad_q = torch.zeros_like(query, dtype=lse.dtype)
        grad_k, grad_v = torch.zeros_like(k_NKD), torch.zeros_like(v_NKD)
        for rows, keys, causal in _own_branch(branches, len(query), place(group)[0]):
            part_q, part_k, part_v = partial_attention_backward(
                grad[rows], query[rows], k_NKD[keys], v_NKD[keys], out[rows], lse[rows], causal, scale
            )
            grad_q[rows].add_(part_q)
            grad_k[keys], grad_v[keys] = part_k, part_v  # no two of these parts share keys
        from_trunk, grad_k, grad_v = _sum_at_home([to_trunk, grad_k, grad_v], lse.dtype, group)
        grad_q = grad_q.add_(from_trunk).to(query.dtype)
        return grad_q, grad_k.to(key.dtype), grad_v.to(value.dtype), grad_trunk_key, grad_trunk_value, None, None, None


def _of_all_ranks(rows: Sequence[Tensor], group: Group) -> Sequence[Tensor]:
    """Gather the rows of all ranks, several tensors [n, …, D] in one exchange; of one rank, the tensors themselves."""
    if place(group)[1] == 1:
        return rows
    return torch.split(gather_rows(torch.cat(list(rows), 1), group), [tensor.shape[1] for tensor in rows], 1)


def _sum_at_home(found: Sequence[Tensor], dtype: torch.dtype, group: Group) -> Sequence[Tensor]:
    """Add up what each rank found for this rank's rows, in `dtype`, several tensors in one exchange."""
    if place(group)[1] == 1:
        return found
    total = send_home(torch.cat(list(found), 1), group).sum(0, dtype=dtype)
    return torch.split(total, [tensor.shape[1] for tensor in found], 1)


def _own_branch(branches: Sequence[slice], rows: int, rank: int) -> Iterator[tuple[slice, slice, bool]]:
    """Yield what n = `rows` rows of a rank attend to in their own branches: (which of them, which of all N, causal).

    The rows of a branch before the rank's first one, then a square on the diagonal.
    """
    shift = rank * rows
    for branch in branches:
        first, end = max(branch.start, shift), min(branch.stop, shift + rows)
        mine = slice(first - shift, end - shift)
        if branch.start < first < end:
            yield mine, slice(branch.start, first), False
        if first < end:
            yield mine, slice(first, end), True


def _merge(parts: Sequence[tuple[slice, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return `out` [n, H, D] and `lse` [n, H] over all keys from parts over disjoint keys; the first has all n rows.

    Sums are taken in the lse's precision, and only the result is rounded to the parts' dtype. The total weight is 1
    apart from the rounding of the lse; dividing by it keeps fp32 as exact as one kernel over all keys.
    """
    (_, first_out, first_lse), *others = parts
    lse_nH = torch.full_like(first_lse, -torch.inf)
    for rows, _, lse in parts:
        lse_nH[rows] = torch.logaddexp(lse_nH[rows], lse)
    weights_nH = [(lse - lse_nH[rows]).exp() for rows, _, lse in parts]
    total_nH = torch.zeros_like(lse_nH)
    for (rows, _, _), weight in zip(parts, weights_nH, strict=True):
        total_nH[rows].add_(weight)
    out_nHD = first_out * (weights_nH[0] / total_nH)[..., None]
    for (rows, out, _), weight in zip(others, weights_nH[1:], strict=True):
        out_nHD[rows].add_(out * (weight / total_nH[rows])[..., None])
    return out_nHD.to(first_out.dtype), lse_nH
