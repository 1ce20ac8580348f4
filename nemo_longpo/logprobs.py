"""Log-probabilities of given tokens without ever holding the [N, V] logits.

Equivalent, without the memory: `logits.log_softmax(-1).gather(-1, labels)`.

Shape legend: N rows (tokens), H hidden size, V vocabulary, P = V / tensor-parallel size (this rank's vocabulary rows).
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE_LABEL = -100


class _VocabParallelLogprobs(torch.autograd.Function):
    """`logits_NP.log_softmax(V)[label]` with the vocabulary split over a process group.

    Three reductions of [N] numbers: maximum, sum of exponentials, the label's logit. The gradient of a row's logits is
    `(onehot(label) − softmax) · grad`, which every rank has locally.
    """

    @staticmethod
    def forward(ctx, logits_NP: Tensor, labels_N: Tensor, vocab_start: int, group: dist.ProcessGroup | None) -> Tensor:
        logits_NP = logits_NP.float()
        maximum_N = logits_NP.amax(-1)
        _all_reduce(maximum_N, dist.ReduceOp.MAX, group)
        exponentials_NP = (logits_NP - maximum_N[:, None]).exp()
        total_N = exponentials_NP.sum(-1)
        _all_reduce(total_N, dist.ReduceOp.SUM, group)

        local_N = labels_N - vocab_start
        is_local_N = (local_N >= 0) & (local_N < logits_NP.shape[-1])
        local_N = local_N.where(is_local_N, 0)
        picked_N = (logits_NP.gather(-1, local_N[:, None])[:, 0] - maximum_N).where(is_local_N, 0.0)
        _all_reduce(picked_N, dist.ReduceOp.SUM, group)

        ctx.save_for_backward(exponentials_NP.div_(total_N[:, None]), local_N, is_local_N)
        return picked_N - total_N.log()

    @staticmethod
    def backward(ctx, grad_N: Tensor):
        softmax_NP, local_N, is_local_N = ctx.saved_tensors
        grad_NP = softmax_NP * -grad_N[:, None]
        grad_NP.scatter_add_(-1, local_N[:, None], grad_N.where(is_local_N, 0.0)[:, None])
        return grad_NP, None, None, None


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> None:
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, op=op, group=group)


def vocab_parallel_logprobs(
    logits_NP: Tensor, labels_N: Tensor, vocab_start: int = 0, group: dist.ProcessGroup | None = None
) -> Tensor:
    """`log_softmax(logits)[label]` per row, fp32 [N]; this rank holds the logits of rows `vocab_start .. + P` of V.

    Without a group the vocabulary is whole and this is the ordinary log-softmax. Logits of −inf (padding rows of the
    vocabulary) take no probability and no gradient.
    """
    return _VocabParallelLogprobs.apply(logits_NP, labels_N, vocab_start, group)


def token_logprobs(
    hidden_NH: Tensor,
    labels_N: Tensor,
    logits_fn: Callable[[Tensor], Tensor],
    vocab_start: int = 0,
    group: dist.ProcessGroup | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """`log p(labels_N | hidden_NH)`, fp32 [N], computing logits for `chunk_size` rows at a time, again in the backward.

    Rows whose label is `IGNORE_LABEL` cost nothing and get 0. Peak memory: 3 · chunk_size · P fp32 logits.

    Args:
        logits_fn: the output layer, [n, H] → [n, P].
        vocab_start, group: this rank's first vocabulary row and the group over which the vocabulary is split.
    """
    scored = (labels_N != IGNORE_LABEL).nonzero()[:, 0]
    if scored.numel() == 0:
        # One row with weight zero keeps the output layer in the graph: gradient hooks expect every parameter.
        row_logprobs = vocab_parallel_logprobs(logits_fn(hidden_NH[:1]), labels_N[:1] * 0, vocab_start, group)
        return torch.zeros(labels_N.shape, device=hidden_NH.device) + 0.0 * row_logprobs

    def score(hidden: Tensor, labels: Tensor) -> Tensor:
        return vocab_parallel_logprobs(logits_fn(hidden), labels, vocab_start, group)

    rows_NH, rows_N = hidden_NH[scored], labels_N[scored]
    chunks = [
        checkpoint(score, hidden, labels, use_reentrant=False, preserve_rng_state=False)
        for hidden, labels in zip(rows_NH.split(chunk_size), rows_N.split(chunk_size), strict=True)
    ]
    return torch.zeros(labels_N.shape, device=hidden_NH.device).index_copy(0, scored, torch.cat(chunks))
