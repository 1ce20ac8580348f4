"""Attention of branches that continue one trunk, each as if it stood alone behind it, under context parallelism.

Every rank keeps its rows of the trunk's keys and values and attends to them with the queries of *all* branch rows,
which are few. The result is partial: the owner of a row merges the parts of all ranks by their log-sum-exp. One rank
per branch adds the branch's attention to itself. What travels grows with the branches, never with the trunk.

Shape legend: n branch rows of this rank, N = n · ranks branch rows of all ranks, M trunk rows of this rank, H query
heads, K key/value heads, D head size, W ranks.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .kernels import kernel_for


class _Part(NamedTuple):
    """Attention of some branch rows to some keys, which this rank computes."""

    rows: slice
    key: Tensor
    value: Tensor
    causal: bool


def _parts(
    key_NKD: Tensor,
    value_NKD: Tensor,
    trunk_key: Tensor,
    trunk_value: Tensor,
    branches: Sequence[slice],
    rank: int,
    world: int,
) -> Iterator[_Part]:
    """All branch rows over this rank's trunk rows, if it has any; then its share of the branches over themselves."""
    if len(trunk_key):
        yield _Part(slice(0, len(key_NKD)), trunk_key, trunk_value, False)
    for branch in branches[rank::world]:
        yield _Part(branch, key_NKD[branch], value_NKD[branch], True)


class _BranchAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, trunk_key, trunk_value, branches, group, scale):
        kernel = kernel_for(query)
        heads, kv_heads = query.shape[1], key.shape[1]
        q, k, v = _gather_rows(torch.cat([query, key, value], 1), group).split([heads, kv_heads, kv_heads], 1)
        precise = torch.promote_types(query.dtype, torch.float32)
        out_NHD = torch.zeros(q.shape, dtype=precise, device=q.device)
        lse_NH = torch.full(q.shape[:2], -torch.inf, dtype=precise, device=q.device)
        for rows, part_key, part_value, causal in _parts(k, v, trunk_key, trunk_value, branches, *_place(group)):
            part_out, part_lse = kernel.forward(q[rows], part_key, part_value, causal, scale)
            out_NHD[rows], lse_NH[rows] = _merge(
                torch.stack([out_NHD[rows], part_out.to(precise)]), torch.stack([lse_NH[rows], part_lse])
            )
        out_nHD, lse_nH = _merge(_send_home(out_NHD.to(query.dtype), group).to(precise), _send_home(lse_NH, group))
        out_nHD = out_nHD.to(query.dtype)
        ctx.save_for_backward(query, key, value, trunk_key, trunk_value, out_nHD, lse_nH)
        ctx.settings = kernel, branches, group, scale
        return out_nHD

    @staticmethod
    def backward(ctx, grad):
        query, key, value, trunk_key, trunk_value, out, lse = ctx.saved_tensors
        kernel, branches, group, scale = ctx.settings
        heads, kv_heads = query.shape[1], key.shape[1]
        rows_of_all = _gather_rows(torch.cat([query, key, value, out, grad], 1), group)
        q, k, v, out_NHD, grad_NHD = rows_of_all.split([heads, kv_heads, kv_heads, heads, heads], 1)
        lse_NH = _gather_rows(lse, group)
        precise = lse.dtype
        gradient = torch.zeros(len(q), heads + 2 * kv_heads, q.shape[2], dtype=precise, device=q.device)
        grad_q, grad_k, grad_v = gradient.split([heads, kv_heads, kv_heads], 1)
        grad_trunk_key, grad_trunk_value = torch.zeros_like(trunk_key), torch.zeros_like(trunk_value)
        for rows, part_key, part_value, causal in _parts(k, v, trunk_key, trunk_value, branches, *_place(group)):
            part_q, part_k, part_v = kernel.backward(
                grad_NHD[rows], q[rows], part_key, part_value, out_NHD[rows], lse_NH[rows], causal, scale
            )
            grad_q[rows] += part_q
            if causal:
                grad_k[rows], grad_v[rows] = part_k, part_v
            else:
                grad_trunk_key, grad_trunk_value = part_k, part_v
        home = _send_home(gradient.to(query.dtype), group).sum(0, dtype=precise).to(query.dtype)
        return *home.split([heads, kv_heads, kv_heads], 1), grad_trunk_key, grad_trunk_value, None, None, None


def branch_attention(
    query_nHD: Tensor,
    key_nKD: Tensor,
    value_nKD: Tensor,
    trunk_key_MKD: Tensor,
    trunk_value_MKD: Tensor,
    branches: Sequence[slice],
    group: dist.ProcessGroup | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of every branch to the whole trunk and causally to itself; returns this rank's rows [n, H, D].

    Equals, per branch, the last rows of causal attention over trunk + branch, and so do all gradients.

    Args:
        query_nHD, key_nKD, value_nKD: this rank's contiguous share of all branches' rows; positions are in them.
        trunk_key_MKD, trunk_value_MKD: the trunk's rows on this rank, in any order, without padding; may be empty.
        branches: each branch's rows among the rows of all ranks; together they cover all of them.
        scale: of the scores; 1/√D by default.
    """
    if scale is None:
        scale = query_nHD.shape[-1] ** -0.5
    return _BranchAttention.apply(query_nHD, key_nKD, value_nKD, trunk_key_MKD, trunk_value_MKD, branches, group, scale)


def _merge(outs_WNHD: Tensor, lses_WNH: Tensor) -> tuple[Tensor, Tensor]:
    """One result from partial ones over disjoint keys; a part without keys (lse −inf) counts nothing."""
    lse_NH = lses_WNH.logsumexp(0)
    return (outs_WNHD * (lses_WNH - lse_NH).exp()[..., None]).sum(0), lse_NH


def _place(group: dist.ProcessGroup | None) -> tuple[int, int]:
    return (0, 1) if group is None else (group.rank(), group.size())


def _gather_rows(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all ranks, in rank order."""
    if group is None or group.size() == 1:
        return local
    gathered = local.new_empty(group.size() * local.shape[0], *local.shape[1:])
    dist.all_gather_into_tensor(gathered, local.contiguous(), group=group)
    return gathered


def _send_home(partial: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Send every rank the part of its own rows: [N, …] → [W, n, …], what each rank found for this rank's rows."""
    if group is None or group.size() == 1:
        return partial[None]
    received = torch.empty_like(partial)
    dist.all_to_all_single(received, partial.contiguous(), group=group)
    return received.view(group.size(), -1, *partial.shape[1:])
