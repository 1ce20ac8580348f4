"""Seconds by kind of kernel, each against operations and bytes counted by hand."""

from dataclasses import replace

import pytest

from nemo_longpo.costs.flops import Recomputed
from nemo_longpo.costs.model_shape import MODELS, ModelShape
from nemo_longpo.costs.rates import KINDS, Rates
from nemo_longpo.placement import Placement
from nemo_longpo.planning.compute import compute_seconds, forward_seconds, recomputed
from nemo_longpo.planning.job import Job

SHAPE = ModelShape(layers=4, hidden=8, ffn=20, heads=4, kv_heads=2, head_size=2, vocab=100)
JOB = Job(shape=SHAPE, trunk=56, chosen=5, rejected=3)
ONE = Rates(**dict.fromkeys(KINDS, 1.0), source="a test")
MATRICES = 4 * 2 * (2 * 8 * (8 + 4) + 3 * 8 * 20) * 64
TRUNK = 4 * 2 * 8 * 56**2
BRANCHES = 4 * (4 * 8 * 56 * 8 + 2 * 8 * (5**2 + 3**2))


def test_work_of_one_gpu():
    found = compute_seconds(JOB, Placement(), ONE)
    assert found.matrices == 3 * MATRICES
    assert found.trunk_attention == 3.5 * TRUNK
    assert found.branch_attention == 3.5 * BRANCHES
    assert found.logprobs == 4 * 2 * 100 * 8 * 64
    # Forward 10h + 10(A + K) + 7f, backward 12h + 12(A + K) + 13f, two bytes each.
    assert found.element_wise == 4 * 64 * 2 * (80 + 120 + 140 + 96 + 144 + 260)
    assert found.total == sum(
        (found.matrices, found.trunk_attention, found.branch_attention, found.logprobs, found.element_wise)
    )


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_each_rate_has_its_kernels(kind):
    """A kernel that is twice as fast saves half of its own time and nothing else. The host link computes nothing."""
    parts = {
        "matrices": 3 * MATRICES,
        "trunk_forward": TRUNK,
        "trunk_backward": 2.5 * TRUNK,
        "branch_forward": BRANCHES,
        "branch_backward": 2.5 * BRANCHES,
        "logprobs": 4 * 2 * 100 * 8 * 64,
        "element_wise": 4 * 64 * 2 * 840,
    }
    fast = compute_seconds(JOB, Placement(), replace(ONE, **{kind: 2.0}))
    assert compute_seconds(JOB, Placement(), ONE).total - fast.total == parts[kind] / 2


def test_concatenated_has_no_branch_kernel():
    found = compute_seconds(replace(JOB, layout="concatenated"), Placement(), ONE)
    assert found.branch_attention == 0
    assert found.trunk_attention == 3.5 * 4 * 2 * 8 * (61**2 + 59**2)


def test_whole_recompute_is_one_more_forward():
    once, twice = (compute_seconds(JOB, Placement().recomputing(what), ONE) for what in ("none", "full"))
    assert twice.matrices - once.matrices == MATRICES
    assert twice.trunk_attention - once.trunk_attention == TRUNK
    assert twice.branch_attention - once.branch_attention == BRANCHES
    assert twice.element_wise - once.element_wise == 4 * 64 * 2 * 340
    assert twice.logprobs == once.logprobs


def test_ranks_share_the_work_and_the_last_stage_scores():
    whole, shared = (compute_seconds(JOB, placement, ONE) for placement in (Placement(), Placement(tp=2, cp=2, pp=2)))
    for kind in ("matrices", "trunk_attention", "branch_attention", "element_wise"):
        assert getattr(shared, kind) == pytest.approx(getattr(whole, kind) / 8)
    assert shared.logprobs == whole.logprobs / 4


def test_recomputed_share_of_the_forward():
    job, mistral = replace(JOB, shape=MODELS["mistral-7b"]), MODELS["mistral-7b"]
    assert recomputed(job, Placement()) == Recomputed(0, 0)
    assert recomputed(job, Placement().recomputing("full")) == Recomputed(1, 1)
    assert recomputed(job, Placement().recomputing("full", 8)) == Recomputed(0.25, 0.25)
    assert recomputed(job, Placement().recomputing("core_attn")) == Recomputed(0, 1)
    feed_forward = 3 * 4096 * 14336 / mistral.layer_matrices
    assert recomputed(job, Placement().recomputing("mlp")) == Recomputed(feed_forward, 0)
    # Tiles run again in the backward, of a recomputed layer there alone.
    tiled = Placement(mlp_tile_tokens=16384)
    assert recomputed(job, tiled) == Recomputed(feed_forward, 0)
    assert recomputed(job, tiled.recomputing("full")) == Recomputed(1, 1)
    assert recomputed(job, tiled.recomputing("full", 8)) == Recomputed(0.25 + 0.75 * feed_forward, 0.25)
    assert recomputed(job, tiled.recomputing("mlp")) == Recomputed(2 * feed_forward, 0)


def test_first_forward_alone():
    for placement in (Placement(), Placement().recomputing("full")):
        found = forward_seconds(JOB, placement, ONE)
        assert (found.matrices, found.trunk_attention, found.branch_attention) == (MATRICES, TRUNK, BRANCHES)
        assert (found.element_wise, found.logprobs) == (4 * 64 * 2 * 340, 0)
