"""Compare causal attention with explicit softmax attention in float64: outputs and gradients of Q, K and V."""

import math

import numpy as np
import pytest
import torch
from support.jobs import gloo_jobs
from support.jobs.gloo_jobs import HEAD, QUERY_HEADS, attend, attention_problem

from nemo_longpo.parallel.segments import zigzag_rows

TOLERANCE = 1e-12
NAMES = ("output", "dQ", "dK", "dV")


def written_out(length: int, scale: float, kv_heads: int = 2) -> list[np.ndarray]:
    """Query head h reads key/value head h // (query heads / kv heads); position i reads positions 0 .. i."""
    q, k, v, grad = attention_problem(length, kv_heads)
    heads = []
    for head in range(QUERY_HEADS):
        kv_head = head // (QUERY_HEADS // kv_heads)
        scores = scale * torch.einsum("ibd,jbd->bij", q[:, :, head], k[:, :, kv_head])
        future = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        heads.append(torch.einsum("bij,jbd->ibd", weights, v[:, :, kv_head]))
    output = torch.stack(heads, 2)
    return [output.detach().numpy(), *(t.numpy() for t in torch.autograd.grad(output, (q, k, v), grad))]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for name, ours, theirs in zip(NAMES, found, expected, strict=True):
        assert ours.shape == theirs.shape, name
        assert np.abs(ours - theirs).max() <= TOLERANCE, name


@pytest.mark.parametrize("length", [1, 7, 16])
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
def test_one_process(length, kv_heads):
    found = attend(torch.arange(length), length, kv_heads=kv_heads)
    assert_equal(found, written_out(length, 1 / math.sqrt(HEAD), kv_heads))


def test_scale_of_ones_own():
    assert_equal(attend(torch.arange(9), 9, scale=0.3), written_out(9, 0.3))


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("ranks", "length", "settings"),
    [
        pytest.param(1, 5, {}, id="one rank, odd length"),
        pytest.param(2, 4, {}, id="2 ranks, one row a chunk"),
        pytest.param(2, 20, {}, id="2 ranks"),
        pytest.param(2, 20, {"scale": 0.3}, id="2 ranks, scale"),
        pytest.param(4, 8, {}, id="4 ranks, one row a chunk"),
        pytest.param(4, 24, {}, id="4 ranks"),
        pytest.param(4, 24, {"scale": 0.3}, id="4 ranks, scale"),
    ],
)
def test_rows_split_over_ranks(workers, ranks, length, settings):
    shares = workers.run(gloo_jobs.attend_to_my_rows, ranks, length=length, **settings)
    expected = written_out(length, settings.get("scale", 1 / math.sqrt(HEAD)))
    for rank, share in enumerate(shares):
        rows = zigzag_rows(length, ranks, rank).numpy()
        assert_equal(share, [whole[rows] for whole in expected])
