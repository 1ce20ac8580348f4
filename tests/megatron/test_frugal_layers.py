"""Megatron's layers with inputs in host memory and feed-forward tiles: same gradients, less memory, no extra work.

Needs no NeMo: `make test-bridge` runs this file on the Megatron-Core of that environment too, where what these classes
override has changed (nemo_longpo/megatron/versions.py).
"""

import numpy as np
import pytest
from support.jobs import frugal_jobs

from nemo_longpo.costs.model_shape import ModelShape
from nemo_longpo.placement import Placement
from nemo_longpo.planning import memory
from nemo_longpo.planning.job import Job

pytestmark = pytest.mark.distributed

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
BLOCK = FULL | {"recompute_method": "block", "recompute_num_layers": 2}
TWO = FULL | {"recompute_num_layers": 2}
MLP = {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
PLAIN = {"layers": 3, "offload": False, "tile": None}
OFFLOAD, TILE = {"offload": True}, {"tile": 6}
ROWS = (22, 7)  # of two micro-batches

CASES = {
    "plain": FULL,
    "offload": FULL | OFFLOAD,
    "offload, a later stage": FULL | OFFLOAD | {"first_stage": False},
    "offload, block": BLOCK | OFFLOAD,
    "offload, two layers at once": TWO | OFFLOAD,
    "tiles": TILE,
    "tiles, recompute mlp": MLP | TILE,
    "tiles, recompute full": FULL | TILE,
    "tiles, recompute full, two layers at once": TWO | TILE,
    "tiles, block": BLOCK | TILE,
    "offload, tiles": FULL | OFFLOAD | TILE,
}


@pytest.fixture(scope="module")
def results(workers):
    (found,) = workers.run(frugal_jobs.gradients, 1, cases=[PLAIN | case for case in CASES.values()])
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith("offload") and "tiles" not in name])
def test_offload_changes_no_bit(results, case):
    for found, expected in zip(results[case]["gradients"], results["plain"]["gradients"], strict=True):
        assert np.array_equal(found, expected)


def test_offload_with_tiles_changes_no_bit_of_tiles(results):
    pairs = zip(results["offload, tiles"]["gradients"], results["tiles, recompute full"]["gradients"], strict=True)
    assert all(np.array_equal(found, expected) for found, expected in pairs)


@pytest.mark.parametrize("case", [name for name in CASES if "tiles" in name])
def test_tiles_equal_the_whole(results, case):
    for found, expected in zip(results[case]["gradients"], results["plain"]["gradients"], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", [name for name in CASES if "tiles" in name])
def test_every_tile_is_computed_twice(results, case):
    """In the forward and in the backward; also where Megatron repeats the feed-forward part or the layer around it."""
    tiles = [tile for rows in ROWS for tile in [6] * (rows // 6) + [rows % 6]]
    assert sorted(results[case]["rows"]) == sorted(tiles * 2)


@pytest.mark.parametrize(
    ("case", "inputs"),
    [("offload", 3), ("offload, a later stage", 2), ("offload, block", 2), ("offload, two layers at once", 2)],
)
def test_host_memory_holds_the_inputs_of_recomputed_layers(results, case, inputs):
    """Of both micro-batches at once. The input of a later stage stays where the schedule holds it."""
    sizes = [-(-rows * frugal_jobs.HIDDEN * 4 // frugal_jobs.PIECE) for rows in ROWS]
    assert results[case]["pieces"] == inputs * sum(sizes)


def planned(rows: int, layers: int, **settings) -> Job:
    """What `longpo plan` expects of a step's activations on the CPU: kept, returned and of a feed-forward part."""
    sizes = {"heads": 2, "kv_heads": 2, "head_size": frugal_jobs.HIDDEN // 2, "vocab": 1}
    shape = ModelShape(layers=layers, hidden=frugal_jobs.HIDDEN, ffn=frugal_jobs.WIDE, **sizes)
    job = Job(shape=shape, trunk=rows, chosen=0, rejected=0, precision="32", on_cpu=True)
    placement = Placement(**settings)
    kept = memory.kept_activations(job, placement) + memory.returned_inputs(job, placement, "only")
    return kept + memory.feed_forward_moment(job, placement)


def test_peak_memory_of_a_step(workers):
    """As planned: what more layers take, with and without host memory, and what smaller tiles save."""
    rows = 256
    layers = [PLAIN | FULL | {"layers": count, "offload": offload} for offload in (False, True) for count in (4, 8)]
    tiles = [PLAIN | recompute | {"layers": 2, "tile": tile} for recompute in (FULL, {}) for tile in (128, 64, 32)]
    (found,) = workers.run(frugal_jobs.peaks, 1, cases=[*layers, *tiles], rows=rows)
    expected = [
        planned(rows, case["layers"], offload_layer_inputs=case["offload"], mlp_tile_tokens=case["tile"], **recompute)
        for case in (*layers, *tiles)
        for recompute in [FULL if "recompute_granularity" in case else {}]
    ]
    assert found[:4] == pytest.approx(expected[:4], rel=0.03)
    one = rows * frugal_jobs.HIDDEN * 4
    for few, many in ((0, 1), (2, 3)):
        assert found[many] - found[few] == pytest.approx(expected[many] - expected[few], abs=0.1 * one)
    for large, small in ((4, 5), (5, 6), (7, 8), (8, 9)):
        assert found[large] - found[small] == pytest.approx(expected[large] - expected[small], rel=0.03)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (TILE | {"add_bias_linear": True}, "leave add_bias_linear off"),
        (TILE | {"tp_comm_overlap": True}, "leave tp_comm_overlap off"),
        (FULL | OFFLOAD | {"fp4": "e2m1"}, "train in bf16"),
    ],
)
def test_layers_that_cannot_are_refused(workers, settings, advice):
    ((message,),) = workers.run(frugal_jobs.refusals, 1, cases=[PLAIN | settings])
    assert advice in message
