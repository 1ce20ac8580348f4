"""What a layer copies between its projections of queries, keys and values and of the output; one rank, no kernels.

The kernels are replaced by ones that only allocate their results, so what is counted is ours, and the same on a GPU.
"""

from types import SimpleNamespace

import pytest
import torch
from support.memory_use import BytesWritten
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_longpo.attention import kernels
from nemo_longpo.parallel.segments import Segments, to_tensor

pytestmark = pytest.mark.slow  # imports Megatron

HEADS, KV_HEADS, HEAD = 8, 2, 16
TRUNK, BRANCHES = 96, (12, 20)
ROWS, BRANCH_ROWS = TRUNK + sum(BRANCHES), sum(BRANCHES)
BF16, FP32 = 2, 4
ONE_RANK = SimpleNamespace(rank=lambda: 0, size=lambda: 1)


def written(trees: list[Segments] | None, monkeypatch) -> tuple[dict, dict]:
    """What `attend_over_trees` writes in the forward and in the backward, per operator (times, bytes)."""
    from nemo_longpo.megatron.attention import attend_over_trees

    counter = BytesWritten()

    class Trunk(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *qkv):
            ctx.save_for_backward(*qkv)
            with counter.paused():
                return torch.ones(qkv[0].shape, dtype=qkv[0].dtype).flatten(2)

        @staticmethod
        def backward(ctx, grad):
            assert grad.stride(-1) == 1
            with counter.paused():
                return tuple(torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in ctx.saved_tensors)

    def forward(q, k, v, causal, scale):
        with counter.paused():
            return torch.ones(q.shape, dtype=q.dtype), torch.ones(q.shape[:2])

    def backward(grad, q, k, v, out, lse, causal, scale):
        with counter.paused():
            return tuple(torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in (q, k, v))

    kernel = kernels.Kernel(forward, backward, folds_forward=False, folds_backward=False)
    monkeypatch.setattr(kernels, "kernel_for", lambda query, key: kernel)
    query, key = (
        torch.randn(ROWS, 1, heads, HEAD, dtype=torch.bfloat16, requires_grad=True) for heads in (HEADS, KV_HEADS)
    )
    whole = torch.randn(ROWS, 1, KV_HEADS, 6 * HEAD, dtype=torch.bfloat16, requires_grad=True)
    value = whole.detach()[..., -HEAD:].requires_grad_()  # a view of the projection, as Megatron makes it
    described = None if trees is None else to_tensor(trees)
    with counter:
        out = attend_over_trees(query, key, value, described, Trunk.apply, ONE_RANK, None)
    assert out.shape == (ROWS, 1, HEADS * HEAD)
    forwards, counter.found = counter.found, {}
    grad = torch.ones_like(out)
    with counter:
        gradients = torch.autograd.grad(out, (query, key, value), grad)
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]
    return forwards, counter.found


@pytest.mark.parametrize("trees", [None, [Segments(ROWS, ROWS)]], ids=["nothing said", "one trunk"])
def test_a_trunk_alone_copies_nothing(trees, monkeypatch):
    assert written(trees, monkeypatch) == ({}, {})


def test_branches_copy_what_two_kernels_leave_apart(monkeypatch):
    """Results of trunk and branches are joined once, and so are the gradients of queries, keys and values; the trunk's
    keys and values have two gradients to add. Everything else is a part of the branch rows, which are few.
    """
    forward, backward = written([Segments(TRUNK, TRUNK, BRANCHES)], monkeypatch)
    number_per_row = BRANCH_ROWS * HEADS
    queries, keys = number_per_row * HEAD, BRANCH_ROWS * KV_HEADS * HEAD
    assert forward == {
        "cat": (1, ROWS * HEADS * HEAD * BF16),
        # The merge: log-sum-exps and weights of the trunk and of each row's own branch, then the sum, in fp32.
        "full_like": (1, number_per_row * FP32),
        "zeros_like": (1, number_per_row * FP32),
        "copy_": (3, 2 * number_per_row * FP32),
        "add_": (5, (2 * number_per_row + queries) * FP32),
        "_to_copy": (1, queries * BF16),
    }
    assert backward == {
        "cat": (3, ROWS * (HEADS + 2 * KV_HEADS) * HEAD * BF16),
        "add": (2, 2 * TRUNK * KV_HEADS * HEAD * BF16),
        # What the branches' own parts and the trunk give the queries, in fp32; keys and values have one part each.
        "zeros_like": (3, queries * FP32 + 2 * keys * BF16),
        "add_": (3, 2 * queries * FP32),
        "copy_": (4, 2 * keys * BF16),
        "_to_copy": (1, queries * BF16),
    }


def test_layers_make_no_tensor_of_the_layout(monkeypatch):
    """Rows of trees are cut by numbers alone: no index, no mask and no number read back from a device."""
    from nemo_longpo.megatron import attention

    trees = to_tensor([Segments(60, 60, (6,)), Segments(40, 40, (10, 12))])
    seen: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def forward(q, k, v, causal, scale):
        return q.new_ones(q.shape), torch.ones(q.shape[:2])

    monkeypatch.setattr(kernels, "kernel_for", lambda query, key: kernels.Kernel(forward, forward, False, False))
    qkv = [torch.ones(ROWS, 1, heads, HEAD) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    with Names():
        attention.attend_over_trees(*qkv, trees, lambda q, k, v: q.flatten(2), ONE_RANK, None)
    assert "logaddexp" in seen
    made = {"arange", "index", "index_select", "nonzero", "lift_fresh", "ones_like", "masked_fill", "tril", "where"}
    assert not made.intersection(seen)
