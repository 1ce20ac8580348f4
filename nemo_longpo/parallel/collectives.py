"""Collectives as functions of a tensor and a group. A group of one rank sends nothing.

Shape legend: n rows of this rank, W ranks, N = n · W rows of all ranks, in rank order.
"""

from typing import Any

import torch
from torch import Tensor, distributed as dist
from torch.autograd.function import Function

Group = dist.ProcessGroup | None


def place(group: Group) -> tuple[int, int]:
    """Return this rank's number and the number of ranks."""
    return (0, 1) if group is None else (group.rank(), group.size())


def gather_rows(local: Tensor, group: Group) -> Tensor:
    """Return the rows of all ranks, [n, …] → [N, …]; has no gradient, see `gather_rows_and_their_gradients`."""
    _, ranks = place(group)
    if ranks == 1:
        return local
    gathered = local.new_empty(ranks * local.shape[0], *local.shape[1:])
    dist.all_gather_into_tensor(gathered, local.contiguous(), group=group)
    return gathered


def send_home(found: Tensor, group: Group) -> Tensor:
    """Send every rank the results for its rows; [N, …] → [W, n, …], the results of each rank for this rank's rows."""
    _, ranks = place(group)
    if ranks == 1:
        return found[None]
    received = torch.empty_like(found, memory_format=torch.contiguous_format)
    dist.all_to_all_single(received, found.contiguous(), group=group)
    return received.view(ranks, -1, *found.shape[1:])


def gather_rows_and_their_gradients(local: Tensor, group: Group) -> Tensor:
    """`gather_rows` with a gradient: the sum of all ranks' gradients for this rank's rows."""
    return _GatherRows.apply(local, group)  # type: ignore[no-untyped-call, no-any-return]


def sum_over_ranks(partial: Tensor, group: Group) -> Tensor:
    """Return the sum over the ranks, on every rank; the backward passes its gradient to each part unchanged."""
    return _SumOverRanks.apply(partial, group)  # type: ignore[no-untyped-call, no-any-return]


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gather_rows(local, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        local = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(local, grad.contiguous(), group=ctx.group)
        return local, None


class _SumOverRanks(Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: Group) -> Tensor:
        total = partial.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
