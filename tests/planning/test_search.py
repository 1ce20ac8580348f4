"""The proposed setups, their order, and the reasons against the others."""

from dataclasses import replace

import pytest

from nemo_longpo.costs import flops
from nemo_longpo.costs.devices import GIB, GPUS
from nemo_longpo.costs.model_shape import MODELS, ModelShape
from nemo_longpo.placement import Placement
from nemo_longpo.planning.compute import compute_seconds
from nemo_longpo.planning.job import Job
from nemo_longpo.planning.search import TILE_TOKENS, Wishes, impossible, search
from nemo_longpo.planning.speed import Machine, branch_traffic, copy_seconds, estimate_speed, layer_communication

MISTRAL, QWEN = MODELS["mistral-7b"], MODELS["qwen2.5-7b"]
SMALL = ModelShape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=4, head_size=16, vocab=10)
H100 = Machine(GPUS["h100-80gb"])
PLAIN = Wishes(offload_optimizer=False, offload_layer_inputs=False, mlp_tile_tokens=0)
JOB = Job(shape=MISTRAL, trunk=131_072, chosen=4500, rejected=4500)


def test_candidates_fit_fastest_first():
    found = search(JOB, H100, Wishes())
    assert len(found.candidates) > 5
    for candidate in found.candidates:
        assert candidate.placement.gpus == 8
        assert candidate.memory.total <= 0.9 * H100.gpu.memory
    on_gpu = [c.speed.seconds for c in found.candidates if not c.placement.offload_optimizer]
    assert on_gpu == sorted(on_gpu)
    assert not found.candidates[0].placement.offload_optimizer
    for refusal in found.refusals:
        assert refusal.missing is None or refusal.missing > 0


def test_wishes_are_kept():
    wishes = Wishes(tp=2, pp=2, cp=2, recompute="full", offload_optimizer=True)
    (candidate,) = search(JOB, H100, wishes).candidates
    placement = candidate.placement
    assert (placement.tp, placement.pp, placement.cp, placement.dp) == (2, 2, 2, 1)
    assert (placement.recompute, placement.offload_optimizer) == ("full", True)


def test_fewest_layers_are_recomputed():
    (candidate,) = search(JOB, H100, Wishes(tp=1, cp=8, recompute="full", offload_optimizer=False)).candidates
    layers = candidate.placement.recompute_num_layers
    assert 1 < layers < 32
    tighter = replace(H100, gpu=replace(H100.gpu, memory=candidate.memory.total / 0.9 - 1))
    (next_one,) = search(JOB, tighter, Wishes(tp=1, cp=8, recompute="full", offload_optimizer=False)).candidates
    assert next_one.placement.recompute_num_layers == layers + 1


def test_full_recompute_starts_at_one_layer():
    (candidate,) = search(replace(JOB, trunk=8192), H100, Wishes(tp=4, cp=2, recompute="full")).candidates
    assert candidate.placement.recompute_num_layers == 1


def test_optimizer_stays_on_the_gpu_if_possible():
    longer = replace(JOB, trunk=524_288)
    (candidate,) = search(longer, H100, Wishes(tp=2, cp=4)).candidates
    (away,) = search(longer, H100, Wishes(tp=2, cp=4, offload_optimizer=True)).candidates
    assert not candidate.placement.offload_optimizer
    assert away.speed.seconds < candidate.speed.seconds


@pytest.mark.parametrize("shape", [MISTRAL, QWEN], ids=["mistral", "qwen2.5"])
def test_a_million_tokens_fit_on_one_node(shape):
    longest = replace(JOB, shape=shape, trunk=2**20)
    best = search(longest, H100, Wishes()).candidates[0]
    assert best.placement.offload_layer_inputs
    assert best.placement.mlp_tile_tokens == TILE_TOKENS
    assert not best.placement.offload_optimizer
    assert best.memory.host * 8 < 2e12
    assert not search(longest, H100, PLAIN).candidates


def test_half_a_million_tokens_fit_on_four_gpus_or_recompute_less():
    half, four = replace(JOB, trunk=2**19), replace(H100, gpus=4)
    assert search(half, four, Wishes()).candidates
    assert not search(half, four, PLAIN).candidates
    best, before = (search(half, H100, wishes).candidates[0] for wishes in (Wishes(), PLAIN))
    assert best.placement.recompute_num_layers < before.placement.recompute_num_layers
    assert best.speed.seconds < 0.99 * before.speed.seconds


@pytest.mark.parametrize("trunk", [2**17, 2**18])
def test_simple_settings_at_equal_speed(trunk):
    """More settings are taken where they save more than a percent of the step, and only there."""
    job = replace(JOB, trunk=trunk)
    for candidate in search(job, H100, Wishes()).candidates:
        placement = candidate.placement
        plain = search(job, H100, replace(PLAIN, tp=placement.tp, pp=placement.pp, cp=placement.cp)).candidates
        if plain and not placement.offload_optimizer:
            more = bool(placement.offload_layer_inputs or placement.mlp_tile_tokens)
            assert more == (plain[0].speed.seconds > 1.01 * candidate.speed.seconds), placement


def test_refused_for_the_nodes_memory():
    longest, wishes = replace(JOB, trunk=2**20), Wishes(tp=4, cp=2, offload_layer_inputs=True, offload_optimizer=False)
    needed = search(longest, H100, wishes).candidates[0].memory.host * 8
    (refusal,) = search(longest, H100, replace(wishes, host_memory=needed - GIB)).refusals
    assert (
        f"needs {needed / GIB:.1f} GiB of {needed / GIB - 1:.1f} of the node's memory, 1.0 too many" in refusal.reason
    )
    assert refusal.missing == pytest.approx(GIB)


def test_copies_cost_what_a_layer_does_not_hide():
    placement = Placement(cp=8, offload_layer_inputs=True).recomputing("full")
    assert copy_seconds(JOB, placement, H100) == 0
    slow = replace(H100, measured=replace(H100.rates, host_link=1e6))
    assert copy_seconds(JOB, replace(placement, offload_layer_inputs=False), slow) == 0
    copies = 2 * 32 * 140_072 / 8 * 4096 * 2 / 1e6
    compute = compute_seconds(JOB, placement, H100.rates)
    assert copy_seconds(JOB, placement, slow) == pytest.approx(copies - (compute.total - compute.logprobs))
    step = [estimate_speed(JOB, placement, machine).communication for machine in (H100, slow)]
    assert step[1] - step[0] == pytest.approx(8 * copy_seconds(JOB, placement, slow))


@pytest.mark.parametrize(
    ("shape", "placement", "reason"),
    [
        (QWEN, Placement(tp=8), "28 attention heads do not divide by tp 8"),
        (QWEN, Placement(tp=7), "4 key/value heads do not divide by tp 7"),
        (MISTRAL, Placement(pp=5), "32 layers do not divide by pp 5"),
        (MISTRAL, Placement(dp=3), "8 pairs of a batch do not divide by dp 3"),
        (replace(SMALL, heads=64, kv_heads=64, head_size=1), Placement(tp=16), "tp 16 reaches beyond a node of 8 GPUs"),
        (replace(SMALL, ffn=30), Placement(tp=4), "30 feed-forward columns do not divide by tp 4"),
    ],
)
def test_impossible_placements_name_the_reason(shape, placement, reason):
    assert impossible(replace(JOB, shape=shape), placement).startswith(reason)


def test_context_parallelism_needs_two_chunks_per_rank():
    assert impossible(replace(JOB, trunk=15), Placement(cp=8)) == "a trunk of 15 tokens does not fill 2 x cp 8 chunks"
    assert impossible(replace(JOB, trunk=16), Placement(cp=8)) is None


def test_refusal_names_missing_memory():
    found = search(replace(JOB, trunk=2**20), Machine(GPUS["h100-80gb"], gpus=4), PLAIN)
    assert not found.candidates
    closest = found.refusals[0]
    assert closest.missing == min(refusal.missing for refusal in found.refusals if refusal.missing)
    needed = closest.missing / GIB + 0.9 * 79.1
    assert f"needs {needed:.1f} GiB of 71.2, {closest.missing / GIB:.1f} too many" in closest.reason


def test_seconds_of_a_step_alone():
    alone = replace(H100, gpus=1)
    placement = Placement().recomputing("full")
    speed = estimate_speed(JOB, placement, alone)
    assert (speed.communication, speed.idle) == (0, 0)
    assert speed.optimizer == pytest.approx(28 * MISTRAL.parameters / H100.rates.element_wise)
    assert speed.compute == compute_seconds(JOB, placement, H100.rates).times(8)
    assert speed.seconds == pytest.approx(speed.compute.total + speed.optimizer)
    assert speed.mfu == pytest.approx(speed.model_flops / speed.seconds / 989e12)
    assert speed.tokens_per_second == pytest.approx(8 * 140_072 / speed.seconds)


def test_rates_of_the_machine_itself_come_first():
    slow = replace(H100.rates, matrices=H100.rates.matrices / 2)
    known, measured = (
        estimate_speed(JOB, Placement(cp=8), machine) for machine in (H100, replace(H100, measured=slow))
    )
    assert measured.compute.matrices == pytest.approx(2 * known.compute.matrices)
    assert measured.compute.trunk_attention == known.compute.trunk_attention


def test_short_prompts_cost_time():
    prompts = (32_768,) * 4
    alone = replace(H100, gpus=1)
    less, more = (
        estimate_speed(replace(JOB, short_prompts=short), Placement().recomputing("full"), alone)
        for short in ((), prompts)
    )
    added = 4 * flops.layers_flops(MISTRAL, flops.PairLengths(32_768, 1125, 1125)) + flops.output_flops(MISTRAL, 9000)
    assert more.model_flops - less.model_flops == pytest.approx(8 * 3 * added)
    assert more.tokens - less.tokens == 8 * 4 * (32_768 + 2 * 1125)
    assert 1.2 * less.seconds < more.seconds < less.seconds * more.executed_flops / less.executed_flops * 1.1
    ring = [layer_communication(replace(JOB, short_prompts=short), Placement(cp=8), H100) for short in ((), prompts)]
    assert ring[1] == pytest.approx(2 * ring[0], rel=0.01), "as many branch rows again, whose traffic nothing hides"


def test_pipeline_idle_time():
    speed = estimate_speed(JOB, Placement(pp=4), H100)
    assert speed.idle == pytest.approx((speed.compute.total + speed.communication) * 3 / 8)


def test_slow_links_and_hidden_rings():
    two_nodes = replace(H100, gpus=16)
    within_one = layer_communication(JOB, Placement(tp=2, cp=4), H100)
    assert layer_communication(JOB, Placement(tp=2, cp=8), two_nodes) > within_one
    assert layer_communication(JOB, Placement(), H100) == 0
    # Only the branches' share is exposed: the trunk's ring hides behind its attention.
    branches = sum(branch_traffic(9000, 32, 8, 128, ranks=8)) / 450e9
    assert layer_communication(JOB, Placement(cp=8), H100) == pytest.approx(branches, rel=0.01)
    short = Job(shape=MISTRAL, trunk=2048, chosen=100, rejected=100)
    assert layer_communication(short, Placement(cp=8), H100) > 200 / 9000 * branches
