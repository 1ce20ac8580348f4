"""Log-probabilities of given tokens without ever holding the [N, V] logits.

Rows pass the output layer a chunk at a time, once in the forward and once more in the backward. Between the two only
the log-sum-exp of each row is kept: it is all that the backward needs to turn a chunk's logits into their gradient,
`(onehot(label) − softmax) · grad`, without another reduction over the vocabulary or over ranks. Logits and their sums
are fp32 whatever the model's precision, and the weight's gradient is summed over chunks in fp32 and rounded once.

Shape legend: N rows (tokens), n rows of a chunk, H hidden size, V vocabulary, P vocabulary rows of this rank (V if the
vocabulary is not split).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed as dist
from torch.autograd.function import once_differentiable

from nemo_longpo.errors import InputError

IGNORE_LABEL = -100


def token_logprobs(
    hidden_NH: Tensor,
    weight_PH: Tensor,
    labels_N: Tensor,
    *,
    chunk_size: int,
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """`(hidden_NH @ weight_VH.T).log_softmax(-1).gather(-1, labels_N)`, fp32 [N], with `chunk_size` rows of logits.

    Rows whose label is `IGNORE_LABEL` cost nothing, get 0 and pass no gradient on. A label that no rank has gets −inf.

    With `group`, each rank holds rows `vocab_start .. + P` of the weight (P may differ, and be 0) and the same hidden
    states and labels. All get the same log-probs, by two all-reduces of 2 N and N numbers. The backward communicates
    nothing: the hidden states' gradient is this rank's part of a sum over the group, which the caller completes.
    """
    return _TokenLogprobs.apply(  # type: ignore[no-untyped-call, no-any-return]
        hidden_NH, weight_PH, labels_N, chunk_size, vocab_start, group
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

    def chunk_size(self, vocab_rows: int, hidden_size: int, dtype: torch.dtype) -> int:
        """Return the `chunk_size` with which `token_logprobs` keeps to the budget; at least 1.

        A row takes P fp32 logits, in low precision a rounded copy of their gradient, and its own hidden state and
        gradient. Besides, and whatever the chunk, the backward holds both gradients that it returns, and in low
        precision the weight's in fp32 too: P · H · 4 bytes.
        """
        if self.rows is not None:
            return self.rows
        copies = 4 if dtype == torch.float32 else 4 + dtype.itemsize
        rows = int(self.memory_gb * 1e9 // (vocab_rows * copies + 2 * hidden_size * dtype.itemsize))
        return max(1, rows - rows % 64 if rows > 64 else rows)  # matrix units like whole tiles


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_PH: Tensor, labels_N: Tensor, chunk_size: int, vocab_start: int, group: Any
    ) -> Tensor:
        scored = (labels_N != IGNORE_LABEL).nonzero()[:, 0]
        labels = labels_N[scored] - vocab_start
        precise = torch.promote_types(hidden_NH.dtype, torch.float32)
        maximum, picked = local = torch.full((2, len(scored)), -torch.inf, dtype=precise, device=hidden_NH.device)
        total = torch.zeros_like(maximum)
        for chunk in _chunks(scored, weight_PH, chunk_size):
            maximum[chunk], picked[chunk], total[chunk] = _summary(hidden_NH[scored[chunk]], weight_PH, labels[chunk])

        maximum_of_all, picked = _all_reduce(local.clone(), dist.ReduceOp.MAX, group)
        log_total = _all_reduce(total * (maximum - maximum_of_all).exp(), dist.ReduceOp.SUM, group).log()
        ctx.save_for_backward(hidden_NH, weight_PH, scored, labels, maximum_of_all + log_total)
        ctx.chunk_size = chunk_size
        # In this order a row that is nearly certain keeps its digits.
        logprobs: Tensor = (picked - maximum_of_all) - log_total
        return logprobs.new_zeros(labels_N.shape).index_copy_(0, scored, logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_PH, scored, labels, logsumexp = ctx.saved_tensors
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        grad_hidden_NH = torch.zeros_like(hidden_NH) if needs_hidden else None
        grad_weight_PH = torch.zeros_like(weight_PH, dtype=logsumexp.dtype) if needs_weight else None
        for chunk in _chunks(scored, weight_PH, ctx.chunk_size):
            rows = scored[chunk]
            hidden_nH = hidden_NH[rows]
            grad_nP = _logit_gradient(hidden_nH, weight_PH, labels[chunk], logsumexp[chunk], grad_N[rows])
            if grad_hidden_NH is not None:
                grad_hidden_NH[rows] = grad_nP @ weight_PH
            if grad_weight_PH is not None:
                _add_transposed_product(grad_weight_PH, grad_nP, hidden_nH)
            del grad_nP  # before the next chunk's logits
        if grad_weight_PH is not None:
            grad_weight_PH = grad_weight_PH.to(weight_PH.dtype)
        return grad_hidden_NH, grad_weight_PH, None, None, None, None


def _chunks(scored: Tensor, weight_PH: Tensor, chunk_size: int) -> Iterator[slice]:
    """Slices of the scored rows; none on a rank without vocabulary rows, which has nothing to compute."""
    for start in range(0, len(scored) if len(weight_PH) else 0, chunk_size):
        yield slice(start, start + chunk_size)


def _summary(hidden_nH: Tensor, weight_PH: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: the largest logit, the label's (−inf if another rank has it), and the sum of exp(logit − largest)."""
    logits_nP = _product(hidden_nH, weight_PH.T)
    index, is_local = _within(labels_n, len(weight_PH))
    picked = logits_nP.gather(-1, index)[:, 0].where(is_local, -torch.inf)
    maximum = logits_nP.amax(-1)
    return maximum, picked, logits_nP.sub_(maximum[:, None]).exp_().sum(-1)


def _logit_gradient(
    hidden_nH: Tensor, weight_PH: Tensor, labels_n: Tensor, logsumexp_n: Tensor, grad_n: Tensor
) -> Tensor:
    """`(onehot(label) − softmax) · grad`, [n, P], made in the logits' memory, then rounded to the model's precision."""
    grad_nP = _product(hidden_nH, weight_PH.T).sub_(logsumexp_n[:, None]).exp_().mul_(-grad_n[:, None])
    index, is_local = _within(labels_n, len(weight_PH))
    grad_nP.scatter_add_(-1, index, grad_n.where(is_local, 0.0)[:, None])
    return grad_nP.to(hidden_nH.dtype)


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


def _add_transposed_product(total_PH: Tensor, left_nP: Tensor, right_nH: Tensor) -> None:
    """`total += left.T @ right`, where `total` may be more precise than the factors.

    Then the product of some columns of `left` at a time: fp32 memory as large as the chunk's logits had is free again.
    """
    if total_PH.dtype == left_nP.dtype:
        torch.addmm(total_PH, left_nP.T, right_nH, out=total_PH)
        return
    columns = max(1, left_nP.numel() // right_nH.shape[1])
    for total, left in zip(torch.split(total_PH, columns), torch.split(left_nP, columns, 1), strict=True):
        total.add_(_product(left.T, right_nH))


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    """In place; ranks that share a vocabulary have the same labels, so either all of them have rows here or none."""
    if group is not None and group.size() > 1 and tensor.numel():
        dist.all_reduce(tensor, op=op, group=group)
    return tensor
