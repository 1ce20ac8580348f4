"""What workers of `WorkerPool` run to test the parts that need only torch, and the problems they share.

Every rank makes the same problem from its size alone; results travel as numpy arrays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_longpo.attention.causal import causal_attention
from nemo_longpo.logprobs import IGNORE_LABEL, token_logprobs
from nemo_longpo.parallel.segments import zigzag_rows

ROWS, HIDDEN = 11, 5
BATCH, QUERY_HEADS, HEAD = 2, 8, 4


@contextmanager
def gloo_group() -> Iterator[dist.ProcessGroup]:
    """The group of all ranks of this job."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
        dist.barrier()  # a rank without work would take the store away while others still connect through it
    finally:
        dist.destroy_process_group()


def logprob_problem(vocab: int, ignored: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [N, H], output weight [V, H], labels [N], and the gradient of the log-probs [N]."""
    generator = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator)
    weight = torch.randn(vocab, HIDDEN, generator=generator)
    labels = torch.randint(0, vocab, (ROWS,), generator=generator)
    labels[list(ignored)] = IGNORE_LABEL
    grad = torch.randn(ROWS, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), labels, grad


def score_with_my_rows(
    vocab: int, ignored: tuple[int, ...], chunk_size: int, vocab_chunk_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """One rank's log-probs, its part of the hidden states' gradient, its weight rows' gradient, and all-reduces needed.

    As in the model, a rank holds ⌈vocab / ranks⌉ rows; where the vocabulary ends, fewer or none.
    """
    hidden, weight, labels, grad = logprob_problem(vocab, ignored)
    with gloo_group() as group:
        rows_per_rank = -(-vocab // group.size())
        start = rows_per_rank * group.rank()
        local = weight.detach()[start : start + rows_per_rank].requires_grad_()
        with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as all_reduce:
            logprobs = token_logprobs(
                hidden,
                local,
                labels,
                chunk_size=chunk_size,
                vocab_chunk_size=vocab_chunk_size,
                vocab_start=start,
                group=group,
            )
            hidden_grad, local_grad = torch.autograd.grad(logprobs, (hidden, local), grad)
        return logprobs.detach().numpy(), hidden_grad.numpy(), local_grad.numpy(), all_reduce.call_count


def attention_problem(length: int, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, K, V and the output's gradient, float64 [S, B, heads, D]."""
    generator = torch.Generator().manual_seed(length)
    heads = QUERY_HEADS, kv_heads, kv_heads, QUERY_HEADS
    q, k, v, grad = (torch.randn(length, BATCH, n, HEAD, generator=generator, dtype=torch.float64) for n in heads)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad


def attend(
    rows: Tensor, length: int, group: dist.ProcessGroup | None = None, scale: float | None = None, kv_heads: int = 2
) -> list[np.ndarray]:
    """`causal_attention` of some rows of the problem: output, dQ, dK, dV."""
    *qkv, grad = attention_problem(length, kv_heads)
    inputs = [tensor.detach()[rows].requires_grad_() for tensor in qkv]
    output = causal_attention(inputs[0], inputs[1], inputs[2], group, scale)
    return [output.detach().numpy(), *(t.numpy() for t in torch.autograd.grad(output, inputs, grad[rows]))]


def attend_to_my_rows(length: int, scale: float | None = None) -> list[np.ndarray]:
    """One rank's zigzag rows of the attention problem."""
    with gloo_group() as group:
        return attend(zigzag_rows(length, group.size(), group.rank()), length, group, scale)
