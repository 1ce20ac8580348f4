"""Which setups are proposed, in which order, and why the others are not."""

from dataclasses import replace

import pytest

from nemo_longpo.attention.branches import bytes_sent
from nemo_longpo.costs.devices import GIB, GPUS
from nemo_longpo.costs.model_shape import MODELS, ModelShape
from nemo_longpo.planning.job import Job, Setup
from nemo_longpo.planning.search import Wishes, impossible, search
from nemo_longpo.planning.speed import Machine, estimate_speed, layer_communication, recomputed_share

MISTRAL, QWEN = MODELS["mistral-7b"], MODELS["qwen2.5-7b"]
H100 = Machine(GPUS["h100-80gb"])
JOB = Job(MISTRAL, 131_072, 4500, 4500)


def test_all_candidates_fit_and_the_fastest_comes_first():
    found = search(JOB, H100, Wishes())
    assert len(found.candidates) > 5
    for candidate in found.candidates:
        assert candidate.setup.gpus == 8
        assert candidate.memory.total <= 0.9 * H100.gpu.memory
    on_gpu = [c.speed.seconds for c in found.candidates if not c.setup.offload_optimizer]
    assert on_gpu == sorted(on_gpu)
    assert not found.candidates[0].setup.offload_optimizer
    for refusal in found.refusals:
        assert refusal.missing is None or refusal.missing > 0


def test_wishes_are_kept():
    wishes = Wishes(tp=2, pp=2, cp=2, recompute="full", offload_optimizer=True)
    (candidate,) = search(JOB, H100, wishes).candidates
    setup = candidate.setup
    assert (setup.tp, setup.pp, setup.cp, setup.dp) == (2, 2, 2, 1)
    assert (setup.recompute, setup.offload_optimizer) == ("full", True)


def test_as_few_layers_as_possible_are_recomputed():
    (candidate,) = search(JOB, H100, Wishes(tp=1, cp=8, recompute="full", offload_optimizer=False)).candidates
    layers = candidate.setup.recompute_layers
    assert 1 < layers < 32
    tighter = replace(H100, gpu=replace(H100.gpu, memory=candidate.memory.total / 0.9 - 1))
    (next_one,) = search(JOB, tighter, Wishes(tp=1, cp=8, recompute="full", offload_optimizer=False)).candidates
    assert next_one.setup.recompute_layers == layers + 1


def test_a_job_with_room_recomputes_one_layer_when_told_to():
    (candidate,) = search(replace(JOB, trunk=8192), H100, Wishes(tp=4, cp=2, recompute="full")).candidates
    assert candidate.setup.recompute_layers == 1


def test_the_optimizer_stays_on_the_gpu_even_where_leaving_would_save_recompute():
    (candidate,) = search(JOB, H100, Wishes(tp=1, cp=8)).candidates
    (away,) = search(JOB, H100, Wishes(tp=1, cp=8, offload_optimizer=True)).candidates
    assert not candidate.setup.offload_optimizer
    assert away.speed.seconds < candidate.speed.seconds


@pytest.mark.parametrize(
    ("shape", "setup", "reason"),
    [
        (QWEN, Setup(tp=8), "28 attention heads do not divide by tp 8"),
        (QWEN, Setup(tp=7), "4 key/value heads do not divide by tp 7"),
        (MISTRAL, Setup(pp=5), "32 layers do not divide by pp 5"),
        (MISTRAL, Setup(dp=3), "8 pairs of a batch do not divide by dp 3"),
        (ModelShape(2, 64, 96, 64, 64, 1, 10), Setup(tp=16), "tp 16 reaches beyond a node of 8 GPUs"),
        (ModelShape(2, 64, 30, 4, 4, 16, 10), Setup(tp=4), "30 feed-forward columns do not divide by tp 4"),
    ],
)
def test_the_impossible_is_refused_with_its_reason(shape, setup, reason):
    assert impossible(replace(JOB, shape=shape), setup, H100).startswith(reason)


def test_context_parallelism_needs_two_chunks_per_rank():
    assert impossible(replace(JOB, trunk=15), Setup(cp=8), H100) == "a trunk of 15 tokens does not fill 2 x cp 8 chunks"
    assert impossible(replace(JOB, trunk=16), Setup(cp=8), H100) is None


def test_what_does_not_fit_says_by_how_much():
    found = search(replace(JOB, trunk=2**20), Machine(GPUS["h100-80gb"], gpus=4), Wishes())
    assert not found.candidates
    closest = found.refusals[0]
    assert closest.missing == min(refusal.missing for refusal in found.refusals if refusal.missing)
    needed = closest.missing / GIB + 0.9 * 79.1
    assert f"needs {needed:.1f} GiB of 71.2, {closest.missing / GIB:.1f} too many" in closest.reason


def test_time_is_flops_over_the_speed_that_is_reached():
    alone = Machine(GPUS["h100-80gb"], gpus=1, utilisation=0.5)
    speed = estimate_speed(JOB, Setup(recompute="full"), alone)
    assert (speed.communication, speed.idle, speed.optimizer) == (0, 0, 0)
    assert speed.seconds == pytest.approx(speed.executed_flops / (0.5 * 989e12))
    assert speed.mfu == pytest.approx(0.5 * speed.model_flops / speed.executed_flops)
    assert speed.tokens_per_second == pytest.approx(8 * 140_072 / speed.seconds)


def test_a_pipeline_idles_while_it_fills_and_empties():
    speed = estimate_speed(JOB, Setup(pp=4), H100)
    assert speed.idle == pytest.approx((speed.compute + speed.communication) * 3 / 8)


def test_recomputed_share_of_the_forward():
    assert recomputed_share(JOB, Setup()) == 0
    assert recomputed_share(JOB, Setup(recompute="full")) == 1
    assert recomputed_share(JOB, Setup(recompute="full", recompute_layers=8)) == 0.25
    mlp, core = (recomputed_share(JOB, Setup(recompute=kind)) for kind in ("mlp", "core_attn"))
    linear = 1 - core
    assert mlp == pytest.approx(linear * 3 * 4096 * 14336 / MISTRAL.layer_matrices)
    assert 0.2 < mlp < 0.25


def test_links_between_nodes_are_slower_and_long_rings_hide():
    two_nodes = replace(H100, gpus=16)
    assert layer_communication(JOB, Setup(tp=2, cp=8), two_nodes) > layer_communication(JOB, Setup(tp=2, cp=4), H100)
    assert layer_communication(JOB, Setup(), H100) == 0
    # Only the branches' share is exposed: the trunk's ring hides behind its attention.
    branches = sum(bytes_sent(9000, 32, 8, 128, cp_size=8)) / 450e9
    assert layer_communication(JOB, Setup(cp=8), H100) == pytest.approx(branches, rel=0.01)
    short = Job(MISTRAL, 2048, 100, 100)
    assert layer_communication(short, Setup(cp=8), H100) > 200 / 9000 * branches
