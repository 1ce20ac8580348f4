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
        heads = [query.shape[1], key.shape[1], value.shape[1]]
        q_NHD, k_NKD, v_NKD = torch.split(gather_rows(torch.cat([query, key, value], 1), group), heads, 1)
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
        heads = [query.shape[1], key.shape[1], value.shape[1]]
        rows_of_all = gather_rows(torch.cat([query, key, value, out, grad], 1), group)
        q_NHD, k_NKD, v_NKD, out_NHD, grad_NHD = torch.split(rows_of_all, [*heads, heads[0], heads[0]], 1)
        to_trunk, grad_trunk_key, grad_trunk_value = partial_attention_backward(
            grad_NHD, q_NHD, trunk_key, trunk_value, out_NHD, gather_rows(lse, group), False, scale
        )
        grad_q = torch.zeros_like(query, dtype=lse.dtype)
        grad_k, grad_v = torch.zeros_like(k_NKD), torch.zeros_like(v_NKD)
        for rows, keys, causal in _own_branch(branches, len(query), place(group)[0]):
            part_q, part_k, part_v = partial_attention_backward(
                grad[rows], query[rows], k_NKD[keys], v_NKD[keys], out[rows], lse[rows], causal, scale
            )
            grad_q[rows] += part_q
            grad_k[keys], grad_v[keys] = part_k, part_v  # no two of these parts share keys
        total = send_home(torch.cat([to_trunk, grad_k, grad_v], 1), group).sum(0, dtype=lse.dtype)
        total[:, : heads[0]] += grad_q
        return *torch.split(total.to(query.dtype), heads, 1), grad_trunk_key, grad_trunk_value, None, None, None


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
    (_, some_out, some_lse), *_ = parts
    lse_nH = torch.full_like(some_lse, -torch.inf)
    for rows, _, lse in parts:
        lse_nH[rows] = torch.logaddexp(lse_nH[rows], lse)
    out_nHD, weight_nH = torch.zeros_like(some_out, dtype=lse_nH.dtype), torch.zeros_like(lse_nH)
    for rows, out, lse in parts:
        weight = (lse - lse_nH[rows]).exp()
        out_nHD[rows] += out * weight[..., None]
        weight_nH[rows] += weight
    return (out_nHD / weight_nH[..., None]).to(some_out.dtype), lse_nH
