"""Log-probabilities of given tokens without ever holding the [N, V] logits.

Logits exist a tile at a time, of some rows and some of the vocabulary, once in the forward and once more in the
backward. Between the two only the log-sum-exp of each row is kept: it is all that the backward needs to turn a tile of
logits into their gradient, `(onehot(label) − softmax) · grad`, without another reduction over the vocabulary or over
ranks. Logits and their sums are fp32 whatever the model's precision, and both gradients are summed over tiles in fp32
and rounded once. On a GPU with Triton a tile is read once each time (`logit_kernels`); the functions here that do the
same with torch alone are the reference.

Shape legend: N rows (tokens), n rows of a tile, H hidden size, V vocabulary, P vocabulary rows of this rank (V if the
vocabulary is not split), p vocabulary rows of a tile.
"""

import functools
import importlib.util
import math
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, distributed as dist
from torch.autograd.function import once_differentiable

from nemo_longpo.errors import InputError

IGNORE_LABEL = -100
# Matrix units are busy with this many rows, and the weight's fp32 gradient is read and written this seldom.
MOST_ROWS = 8192


def token_logprobs(
    hidden_NH: Tensor,
    weight_PH: Tensor,
    labels_N: Tensor,
    *,
    chunk_size: int,
    vocab_chunk_size: int | None = None,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    weight_grad_PH: Tensor | None = None,
) -> Tensor:
    """`(hidden_NH @ weight_VH.T).log_softmax(-1).gather(-1, labels_N)`, fp32 [N], with `chunk_size` rows of logits,
    of `vocab_chunk_size` columns or all.

    Rows whose label is `IGNORE_LABEL` cost nothing, get 0 and pass no gradient on. A label that no rank has gets −inf.

    With `group`, each rank holds rows `vocab_start .. + P` of the weight (P may differ, and be 0) and the same hidden
    states and labels. All get the same log-probs, by two all-reduces of 2 N and N numbers. The backward communicates
    nothing: the hidden states' gradient is this rank's part of a sum over the group, which the caller completes.

    With `weight_grad_PH`, of the logits' precision, the backward adds the weight's gradient to it and gives autograd
    none: neither a sum of its own, P · H · 4 bytes, nor a rounded copy of it is made.
    """
    tile = chunk_size, vocab_chunk_size or len(weight_PH)
    if weight_grad_PH is not None:
        precise = torch.promote_types(weight_PH.dtype, torch.float32)
        assert (weight_grad_PH.shape, weight_grad_PH.dtype) == (weight_PH.shape, precise), "no sum of this gradient"
        weight_PH = weight_PH.detach()
    return _TokenLogprobs.apply(  # type: ignore[no-untyped-call, no-any-return]
        hidden_NH, weight_PH, labels_N, tile, vocab_start, group, weight_grad_PH
    )


@dataclass(frozen=True)
class LogitBudget:
    """How many rows of logits are there at once: as many as take `memory_gb` (10⁹ bytes), or `rows` where it is given.

    Raises InputError if one of the two is too small, by the name that `LongPOModel` has for it.
    """

    memory_gb: float
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.memory_gb <= 0:
            raise InputError(f"model.logprob_memory_gb is {self.memory_gb}; it must be more than 0.")
        if self.rows is not None and self.rows < 1:
            raise InputError(f"model.logprob_chunk_size is {self.rows}; give at least 1, or null.")

    def tile(self, vocab_rows: int, hidden_size: int, dtype: torch.dtype) -> tuple[int, int]:
        """Return the `chunk_size` and `vocab_chunk_size` with which `token_logprobs` keeps to the budget.

        A tile takes n · p fp32 logits, in low precision a rounded copy of their gradient; and its n rows' hidden states
        with their gradient, in fp32 and rounded. Besides, and whatever the tile, the backward holds both gradients that
        it returns, and in low precision the weight's in fp32 too: P · H · 4 bytes.
        """
        if self.rows is not None:
            return self.rows, vocab_rows
        budget = int(self.memory_gb * 1e9)
        logit = 4 if dtype == torch.float32 else 4 + dtype.itemsize
        states = hidden_size * (2 * dtype.itemsize + 4)
        rows = max(1, min(MOST_ROWS, math.isqrt(budget // (2 * logit)), budget // (2 * states)))
        columns = max(64, (budget // rows - states) // logit)
        if columns >= vocab_rows:
            return _whole_tiles(budget // (vocab_rows * logit + states)), vocab_rows
        rows = _whole_tiles(rows)
        columns = max(64, (budget // rows - states) // logit)
        return rows, min(_whole_tiles(columns), -(-math.ceil(vocab_rows / -(-vocab_rows // columns)) // 64) * 64)


def _whole_tiles(count: int) -> int:
    """Matrix units like multiples of 64."""
    return max(1, count - count % 64 if count > 64 else count)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_PH: Tensor,
        labels_N: Tensor,
        tile: tuple[int, int],
        vocab_start: int,
        group: Any,
        weight_grad_PH: Tensor | None,
    ) -> Tensor:
        scored = (labels_N != IGNORE_LABEL).nonzero()[:, 0]
        labels = labels_N[scored] - vocab_start
        precise = torch.promote_types(hidden_NH.dtype, torch.float32)
        maximum, picked = local = torch.full((2, len(scored)), -torch.inf, dtype=precise, device=hidden_NH.device)
        total = torch.zeros_like(maximum)
        for rows in _slices(len(scored), tile[0]):
            hidden_nH = hidden_NH[scored[rows]]
            for columns in _slices(len(weight_PH), tile[1]):
                largest, found, part = _summary(hidden_nH, weight_PH[columns], labels[rows] - columns.start)
                both = torch.maximum(maximum[rows], largest)
                total[rows] = total[rows] * (maximum[rows] - both).exp() + part * (largest - both).exp()
                maximum[rows], picked[rows] = both, torch.maximum(picked[rows], found)

        maximum_of_all, picked = _all_reduce(local.clone(), dist.ReduceOp.MAX, group)
        log_total = _all_reduce(total * (maximum - maximum_of_all).exp(), dist.ReduceOp.SUM, group).log()
        ctx.save_for_backward(hidden_NH, weight_PH, scored, labels, maximum_of_all + log_total)
        ctx.tile, ctx.weight_grad_PH = tile, weight_grad_PH
        # In this order a row that is nearly certain keeps its digits.
        logprobs: Tensor = (picked - maximum_of_all) - log_total
        return logprobs.new_zeros(labels_N.shape).index_copy_(0, scored, logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_PH, scored, labels, logsumexp = ctx.saved_tensors
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        grad_hidden_NH = torch.zeros_like(hidden_NH) if needs_hidden else None
        grad_weight_PH = ctx.weight_grad_PH
        if needs_weight:
            grad_weight_PH = torch.zeros_like(weight_PH, dtype=logsumexp.dtype)
        for rows in _slices(len(scored), ctx.tile[0]):
            places = scored[rows]
            hidden_nH, grad_n = hidden_NH[places], grad_N[places]
            sum_nH = torch.zeros_like(hidden_nH, dtype=logsumexp.dtype) if needs_hidden else None
            for columns in _slices(len(weight_PH), ctx.tile[1]):
                weight_pH = weight_PH[columns]
                grad_np = _logit_gradient(hidden_nH, weight_pH, labels[rows] - columns.start, logsumexp[rows], grad_n)
                if sum_nH is not None:
                    _add_product(sum_nH, grad_np, weight_pH)
                if grad_weight_PH is not None:
                    _add_product(grad_weight_PH[columns], grad_np.T, hidden_nH)
                del grad_np  # before the next tile's logits
            if grad_hidden_NH is not None and sum_nH is not None:
                grad_hidden_NH[places] = sum_nH.to(hidden_NH.dtype)
        returned = grad_weight_PH.to(weight_PH.dtype) if needs_weight else None
        return grad_hidden_NH, returned, None, None, None, None, None


def _slices(length: int, size: int) -> Iterator[slice]:
    """None on a rank without rows of the vocabulary, and where nothing is scored."""
    for start in range(0, length, max(1, size)):
        yield slice(start, min(start + size, length))


def _summary(hidden_nH: Tensor, weight_pH: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: the largest logit, the label's (−inf if it is in no column), and the sum of exp(logit − largest)."""
    logits_np = _product(hidden_nH, weight_pH.T)
    if (fused := _fused_kernels(logits_np.device)) is not None:
        return fused.summary(logits_np, labels_n)  # type: ignore[no-any-return]
    index, is_local = _within(labels_n, len(weight_pH))
    picked = logits_np.gather(-1, index)[:, 0].where(is_local, -torch.inf)
    maximum = logits_np.amax(-1)
    return maximum, picked, logits_np.sub_(maximum[:, None]).exp_().sum(-1)


def _logit_gradient(
    hidden_nH: Tensor, weight_pH: Tensor, labels_n: Tensor, logsumexp_n: Tensor, grad_n: Tensor
) -> Tensor:
    """`(onehot(label) − softmax) · grad`, [n, p], rounded to the model's precision."""
    logits_np = _product(hidden_nH, weight_pH.T)
    if (fused := _fused_kernels(logits_np.device)) is not None:
        return fused.gradient(logits_np, labels_n, logsumexp_n, grad_n, hidden_nH.dtype)  # type: ignore[no-any-return]
    grad_np = logits_np.sub_(logsumexp_n[:, None]).exp_().mul_(-grad_n[:, None])
    index, is_local = _within(labels_n, len(weight_pH))
    grad_np.scatter_add_(-1, index, grad_n.where(is_local, 0.0)[:, None])
    return grad_np.to(hidden_nH.dtype)


@functools.cache
def _fused_kernels(device: torch.device) -> ModuleType | None:
    """Return `logit_kernels` where Triton can run them; says once if it is there and cannot."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from nemo_longpo import logit_kernels

    few, label = torch.zeros(1, 1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    try:
        logit_kernels.summary(few, label)
        logit_kernels.gradient(few, label, few[0], few[0], torch.bfloat16)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as failure:
        warnings.warn(f"Triton cannot compile here ({failure}); log-probs take a third more time", stacklevel=1)
        return None
    return logit_kernels


def _within(labels_n: Tensor, vocab_rows: int) -> tuple[Tensor, Tensor]:
    """Where to look the labels up, [n, 1], and which of them this rank has, [n]."""
    return labels_n.clamp(0, vocab_rows - 1)[:, None], (labels_n >= 0) & (labels_n < vocab_rows)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in at least fp32: of low-precision factors, what the matrix units sum is not rounded."""
    if left.dtype == torch.promote_types(left.dtype, torch.float32):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()  # torch has no such kernel for CPUs


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, where `total` may be more precise than the factors.

    Where the product cannot add, it is made of some rows at a time: fp32 memory as large as the logits had is free.
    """
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    elif total.is_cuda and _products_add(total.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        rows = max(1, left.numel() // total.shape[1])
        for part, factor in zip(torch.split(total, rows), torch.split(left, rows), strict=True):
            part.add_(_product(factor, right))


@functools.cache
def _products_add(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of low precision can add to an fp32 matrix; until about torch 2.10 its check refuses that."""
    one, total = torch.ones(16, 16, dtype=dtype, device=device), torch.ones(16, 16, device=device)
    try:
        torch.addmm(total, one, one, out_dtype=torch.float32, out=total)
    except RuntimeError:
        return False
    return bool((total == 17.0).all())


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    """In place; ranks that share a vocabulary have the same labels, so either all of them have rows here or none."""
    if group is not None and group.size() > 1 and tensor.numel():
        dist.all_reduce(tensor, op=op, group=group)
    return tensor
