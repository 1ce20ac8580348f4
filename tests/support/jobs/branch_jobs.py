"""What workers of `WorkerPool` run to test attention over a shared prefix, and the problems they share.

Every rank makes the same problem from its sizes alone; results travel as numpy arrays, float64.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from support.jobs.gloo_jobs import gloo_group
from torch import Tensor

from nemo_longpo.attention.branches import branch_attention
from nemo_longpo.attention.causal import causal_attention
from nemo_longpo.parallel.segments import zigzag_rows

QUERY_HEADS, HEAD = 8, 4


def branch_problem(
    trunk: int, branches: Sequence[int], kv_heads: int, head: int = HEAD, dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Q, K, V of the trunk, Q, K, V of all branches one after the other, and the gradient of the branches' output.

    All [rows, heads, D] in `dtype`; the trunk's queries are for references that run whole sequences.
    """
    generator = torch.Generator().manual_seed(trunk + sum(branches))
    heads = {"q": QUERY_HEADS, "k": kv_heads, "v": kv_heads}

    def draw(rows: int) -> dict[str, Tensor]:
        return {
            name: torch.randn(rows, n, head, generator=generator, dtype=torch.float64).to(dtype)
            for name, n in heads.items()
        }

    return draw(trunk), draw(sum(branches)), draw(sum(branches))["q"]


def attend_from_branches(
    trunk: int,
    branches: Sequence[int],
    kv_heads: int = 2,
    padding: int = 0,
    scale: float | None = None,
    head: int = HEAD,
    dtype: str = "float64",
    group: dist.ProcessGroup | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """One rank's `branch_attention`: the numbers of its rows, and its rows of the output and of every gradient.

    The trunk is zigzag-split with padding up to a multiple of 2 · ranks, which the rank leaves out; the branch rows in
    equal shares, with `padding` rows behind the last branch that nobody asks anything of.
    """
    rank, ranks = (0, 1) if group is None else (group.rank(), group.size())
    shared, own, grad = branch_problem(trunk, branches, kv_heads, head, getattr(torch, dtype))
    rows_of_trunk = zigzag_rows(-(-trunk // (2 * ranks)) * 2 * ranks if ranks > 1 else trunk, ranks, rank)
    rows_of_trunk = rows_of_trunk[rows_of_trunk < trunk]
    rows_of_branches = torch.arange(sum(branches) + padding).view(ranks, -1)[rank]

    def mine(tensor: Tensor, filling: float) -> Tensor:
        padded = torch.cat([tensor, tensor.new_full((padding, *tensor.shape[1:]), filling)])
        return padded[rows_of_branches].requires_grad_()

    inputs = {f"branch {name}": mine(tensor, 0.5) for name, tensor in own.items()}
    inputs |= {f"trunk {name}": shared[name][rows_of_trunk].requires_grad_() for name in "kv"}
    ends = np.cumsum(branches).tolist()
    slices = [slice(end - length, end) for length, end in zip(branches, ends, strict=True)]
    slices[-1] = slice(slices[-1].start, slices[-1].stop + padding)
    output = branch_attention(*inputs.values(), slices, group, scale)
    gradients = torch.autograd.grad(output, tuple(inputs.values()), mine(grad, 0.0).detach())
    assert output.dtype == grad.dtype
    assert [gradient.dtype for gradient in gradients] == [grad.dtype] * len(gradients)
    found = {"output": output.detach()} | dict(zip(inputs, gradients, strict=True))
    return {
        name: ((rows_of_trunk if "trunk" in name else rows_of_branches).numpy(), tensor.double().numpy())
        for name, tensor in found.items()
    }


def attend_from_my_branch_rows(**problem) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with gloo_group() as group:
        return attend_from_branches(**problem, group=group)


@contextmanager
def sent_bytes(group: dist.ProcessGroup) -> Iterator[dict[str, int]]:
    """Per collective, the bytes that this rank sends to others; a collective that is not counted here is an error.

    In `all_gather` a rank's input goes to every other rank, in `reduce_scatter` and `all_to_all` each other rank gets
    its share of the input.
    """
    others, sent = group.size() - 1, dict[str, int]()

    def counting(name: str, shares: int):
        collective = getattr(dist, name)

        def call(output: Tensor, input: Tensor, group: dist.ProcessGroup) -> None:
            sent[name] = sent.get(name, 0) + input.numel() * input.element_size() * others // shares
            collective(output, input, group=group)

        return mock.patch.object(dist, name, call)

    def refuse(*args, **kwargs) -> None:
        raise AssertionError("a collective that nobody counts")

    with ExitStack() as stack:
        for name in ("all_reduce", "all_gather", "broadcast", "reduce_scatter", "all_to_all", "send", "recv"):
            stack.enter_context(mock.patch.object(dist, name, refuse))
        stack.enter_context(counting("all_gather_into_tensor", 1))
        stack.enter_context(counting("reduce_scatter_tensor", group.size()))
        stack.enter_context(counting("all_to_all_single", group.size()))
        yield sent


def attention_traffic(
    kind: str, rows: int, trunk: int, heads: int, kv_heads: int, head: int, dtype: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that one rank sends, forward and backward, in `branch_attention` or `causal_attention` of so many rows.

    `rows` are those of two branches together (`kind` "branches") or of a sequence ("causal"), over all ranks; the
    branches' `trunk` sends nothing, of whatever length.
    """
    with gloo_group() as group:
        ranks = group.size()

        def draw(count: int, heads: int) -> Tensor:
            return torch.zeros(count, heads, head, dtype=getattr(torch, dtype), requires_grad=True)

        query, key, value = draw(rows // ranks, heads), draw(rows // ranks, kv_heads), draw(rows // ranks, kv_heads)
        with sent_bytes(group) as forward:
            if kind == "branches":
                shared, half = draw(trunk // ranks, kv_heads), rows // 3
                output = branch_attention(query, key, value, shared, shared, [slice(0, half), slice(half, rows)], group)
            else:
                output = causal_attention(query[:, None], key[:, None], value[:, None], group)
        with sent_bytes(group) as backward:
            output.sum().backward()
        return forward, backward
