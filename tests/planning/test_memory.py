"""Memory by part: worked examples, and the effect of each setting on its part."""

from dataclasses import replace

import pytest

from nemo_longpo.costs.model_shape import MODELS, ModelShape
from nemo_longpo.placement import Placement
from nemo_longpo.planning.job import Job
from nemo_longpo.planning.memory import (
    attention_moment,
    branch_bytes,
    estimate_memory,
    feed_forward_moment,
    kept_activations,
    layer_widths,
    logprob_moment,
    offloaded_inputs,
    parameters_per_gpu,
    returned_inputs,
    ring_bytes,
)

GIB = 2**30
SMALL = ModelShape(layers=4, hidden=8, ffn=20, heads=4, kv_heads=2, head_size=2, vocab=100)
PAIR = Job(shape=SMALL, trunk=60, chosen=3, rejected=1)
LONG = Job(shape=MODELS["mistral-7b"], trunk=131_072, chosen=4500, rejected=4500)


def test_memory_of_a_whole_model():
    memory = estimate_memory(LONG, Placement().recomputing("full"))
    parameters = 7_241_732_096
    assert (memory.weights, memory.gradients, memory.optimizer) == (2 * parameters, 4 * parameters, 12 * parameters)


@pytest.mark.parametrize(("stage", "tables"), [("only", 2), ("first", 1), ("last", 1)])
def test_parameters_of_a_stage(stage, tables):
    placement = Placement(tp=2, pp=1 if stage == "only" else 2)
    matrices = 2 * 8 * (8 + 4) + 3 * 8 * 20
    layers = 4 if stage == "only" else 2
    assert parameters_per_gpu(PAIR, placement, stage) == layers * (matrices / 2 + 16) + tables * 100 * 8 / 2 + 8


def test_pipeline_holds_tied_table_twice():
    tied = replace(PAIR, shape=replace(SMALL, tied=True))
    whole = parameters_per_gpu(tied, Placement(), "only")
    assert whole == tied.shape.parameters
    stages = sum(parameters_per_gpu(tied, Placement(pp=2), stage) for stage in ("first", "last"))
    assert stages - whole == 100 * 8 + 8  # the table, and the final norm counted on both


def test_everything_a_layer_keeps():
    placement = Placement(cp=2)
    # input, norm, projection, rotated, result, apart, ring, input, norm, gate
    width = 8 + 8 + (8 + 8) + (8 + 4) + 8 + 8 + 8 + 8 + 8 + 5 * 20
    assert sum(layer_widths(PAIR, placement).values()) == width
    assert kept_activations(PAIR, placement) == 4 * width * 32 * 2


def test_norms_of_queries_and_keys_keep_what_they_read():
    """With plain norms a step on a CPU keeps 2A + K more numbers per row, counted from what autograd holds."""
    normed = replace(PAIR, shape=replace(SMALL, qk_norm=True))
    for on_cpu, more in ((False, 8 + 4), (True, 2 * 8 + 4)):
        with_norms, without = (layer_widths(replace(job, on_cpu=on_cpu), Placement()) for job in (normed, PAIR))
        assert {name: with_norms[name] - width for name, width in without.items() if with_norms[name] != width} == {
            "attention": more
        }
    assert normed.shape.layer_vectors - SMALL.layer_vectors == 2 * 2


@pytest.mark.parametrize(
    ("recompute", "layers", "width"),
    [
        ("core_attn", 0, 4 * (184 - 16)),
        ("mlp", 0, 4 * (184 - 108)),
        ("full", 0, 4 * 8),
        ("full", 4, 4 * 8),
        ("full", 3, 3 * 8 + 184),
    ],
)
def test_activations_left_by_recompute(recompute, layers, width):
    placement = Placement(cp=2).recomputing(recompute, layers or None)
    assert kept_activations(PAIR, placement) == width * 32 * 2


def test_concatenated_has_twice_the_trunk():
    job = replace(PAIR, layout="concatenated")
    assert job.rows == 2 * 63
    assert branch_bytes(job, Placement()) == 0
    assert sum(layer_widths(job, Placement()).values()) == sum(layer_widths(PAIR, Placement()).values()) - 8


@pytest.mark.parametrize(("layout", "rows"), [("shared_prefix", 64 + 23 + 13), ("concatenated", 126 + 44 + 24)])
def test_short_prompts_add_their_rows(layout, rows):
    """Two turns share the answers, 2 of 3 and 1 of 1 tokens each; attention never sees more than one tree at once."""
    job = replace(PAIR, layout=layout, short_prompts=(20, 10))
    assert job.lengths.short == ((20, 2, 1), (10, 2, 1))
    assert (job.rows, job.tokens) == (rows, 64 + 23 + 13)
    assert job.branch_rows == (10 if layout == "shared_prefix" else 0)
    alone = replace(PAIR, layout=layout)
    assert job.document_alone == alone
    placement = Placement(cp=2).recomputing("none")
    more, less = estimate_memory(job, placement), estimate_memory(alone, placement)
    assert more.activations / less.activations == pytest.approx(job.rows / alone.rows)
    assert more.inputs / less.inputs == pytest.approx(job.rows / alone.rows)
    assert attention_moment(job, placement) == attention_moment(alone, placement)


def test_tensor_parallelism_splits_activations():
    one, four = Placement(cp=2), Placement(tp=4, cp=2)
    assert kept_activations(LONG, four) == kept_activations(LONG, one) / 4
    assert ring_bytes(LONG, four) == ring_bytes(LONG, one) / 4
    assert feed_forward_moment(LONG, four) > feed_forward_moment(LONG, one) / 4
    states = 70_036 * 4096 * 2
    assert logprob_moment(LONG, one) == pytest.approx(3 * states + 1e9)
    assert logprob_moment(LONG, four) == pytest.approx(2.25 * states + 1e9)
    in_bf16 = replace(four, grad_reduce_in_fp32=False)
    assert logprob_moment(LONG, in_bf16) == pytest.approx(2.25 * states + 1e9 + 32000 * 4096 * 6 / 4)


def test_ring_holds_the_whole_sequence():
    trunk = 131_072 * (4096 + 2 * 1024) * 2
    assert ring_bytes(LONG, Placement(cp=2)) == pytest.approx(trunk, rel=1e-3)
    assert ring_bytes(LONG, Placement(cp=8)) == pytest.approx(trunk, rel=1e-3)
    assert ring_bytes(LONG, Placement()) == 0


def test_first_pipeline_stage_holds_several_pairs():
    two, one = Placement(pp=2).recomputing("full"), Placement().recomputing("full")
    first = estimate_memory(LONG, two)
    assert first.activations == estimate_memory(LONG, one).activations  # half the layers, two pairs
    assert first.logprobs == 0
    single = estimate_memory(replace(LONG, pairs=1), two)
    assert single.activations == first.activations / 2


def test_optimizer_memory():
    whole = estimate_memory(LONG, Placement().recomputing("full")).optimizer
    assert estimate_memory(LONG, Placement(cp=4, dp=2).recomputing("full")).optimizer == whole / 8
    on_cpu = replace(LONG, on_cpu=True)
    assert estimate_memory(on_cpu, Placement(cp=4, dp=2).recomputing("full")).optimizer == whole
    away = estimate_memory(LONG, Placement(cp=8, offload_optimizer=True).recomputing("full"))
    assert (away.optimizer, away.host) == (0, whole / 8)


INPUT = 8 * 64 * 2  # hidden · rows · bytes


def test_offloaded_inputs_are_in_host_memory():
    """Two of four layers' inputs are on the GPU at once: one is used while the next one comes."""
    stay, leave = (estimate_memory(PAIR, _full(offload_layer_inputs=away)) for away in (False, True))
    assert stay.activations == kept_activations(PAIR, _full()) == 4 * INPUT
    assert (leave.activations, leave.host) == (2 * INPUT, 4 * INPUT)
    assert stay.total - leave.total == 2 * INPUT
    assert stay.host == 0


def test_offload_leaves_kept_layers_alone():
    stay, leave = (
        estimate_memory(PAIR, Placement(offload_layer_inputs=away).recomputing("full", 3)) for away in (False, True)
    )
    assert stay.activations - leave.activations == INPUT
    assert leave.host == 3 * INPUT


def test_offload_under_a_pipeline():
    """The first stage has the inputs of two pairs in host memory, and those of the one in backward on the GPU."""
    placement = _full(pp=2, offload_layer_inputs=True)
    no_logits = replace(PAIR, shape=replace(SMALL, vocab=2), logprob_memory_gb=1e-9)
    memory = estimate_memory(no_logits, placement)  # of the first stage, where the last one has no more
    assert (offloaded_inputs(PAIR, placement, "first"), returned_inputs(PAIR, placement, "first")) == (2 * INPUT,) * 2
    assert (memory.activations, memory.host) == (2 * INPUT, 2 * 2 * INPUT)
    # The last one holds what it received until the backward.
    assert (offloaded_inputs(PAIR, placement, "last"), returned_inputs(PAIR, placement, "last")) == (INPUT, 2 * INPUT)


def test_host_memory_adds_up():
    both = estimate_memory(PAIR, _full(offload_layer_inputs=True, offload_optimizer=True))
    assert both.host == 4 * INPUT + 12 * SMALL.parameters


def test_tiles_hold_one_tile():
    """Of 64 rows, 16 have the feed-forward part's values and gradients; all have a gradient behind and before it."""
    whole, tiled = _full(), _full(mlp_tile_tokens=16)
    per_row = sum(layer_widths(PAIR, whole).values())
    mlp = 8 + 5 * 20
    gradients = 8 + 2 * 20
    assert feed_forward_moment(PAIR, whole) == (per_row + gradients) * 64 * 2
    assert feed_forward_moment(PAIR, tiled) == (per_row - mlp + 16) * 64 * 2 + (mlp + gradients) * 16 * 2
    # A tile of more rows than there are is one of all.
    assert feed_forward_moment(PAIR, _full(mlp_tile_tokens=999)) == (per_row + gradients + 16) * 64 * 2
    assert estimate_memory(PAIR, tiled).activations == estimate_memory(PAIR, whole).activations


def test_layers_in_tiles_keep_no_feed_forward_values():
    tiled = Placement(mlp_tile_tokens=16)
    assert kept_activations(PAIR, tiled) == kept_activations(PAIR, Placement().recomputing("mlp"))
    assert feed_forward_moment(PAIR, tiled) == 16 * 64 * 2 + (8 + 5 * 20 + 8 + 2 * 20) * 16 * 2


def test_tiles_are_shared_by_tensor_parallel_ranks():
    one, four = (feed_forward_moment(LONG, _full(tp=tp, mlp_tile_tokens=16384)) for tp in (1, 4))
    assert one / 4 < four < one / 3


def _full(**settings) -> Placement:
    return Placement(**settings).recomputing("full")


def test_total_counts_the_larger_transient_part():
    memory = estimate_memory(LONG, Placement(tp=4, cp=2).recomputing("full"))
    lasting = memory.weights + memory.gradients + memory.optimizer + memory.activations + memory.inputs
    assert memory.total == lasting + max(memory.layer, memory.logprobs) + memory.communication
    assert memory.as_dict()["total"] == memory.total


def test_plain_norms_keep_more():
    on_cpu = replace(PAIR, on_cpu=True)
    for placement, widths in ((Placement(), 2), (Placement().recomputing("mlp"), 3)):
        difference = kept_activations(on_cpu, placement) - kept_activations(PAIR, placement)
        assert difference == 4 * widths * 8 * 64 * 2


def test_fp32():
    job = replace(PAIR, precision="32", on_cpu=True)
    assert estimate_memory(job, Placement()).optimizer == 8 * SMALL.parameters
    in_bf16 = replace(job, precision="bf16-mixed")
    assert kept_activations(job, Placement()) == 2 * kept_activations(in_bf16, Placement())


def test_half_a_million_tokens_fit_on_one_node():
    """The stretch goal: 8 GPUs of 80 GB, fp32 gradients, nothing on the CPU."""
    memory = estimate_memory(replace(LONG, trunk=524_288), Placement(tp=4, cp=2).recomputing("full"))
    assert 45 * GIB < memory.total < 65 * GIB
