"""One global batch through the real NeMo + Megatron-Core stack equals plain Hugging Face: loss, metrics, gradients."""

import pytest
from support.parity import TOLERANCE, assert_equal_gradients, train_one_step

from nemo_longpo.objective import METRICS

pytestmark = pytest.mark.distributed

FULL = {"trainer.strategy.recompute_granularity": "full"}
BLOCK = {**FULL, "trainer.strategy.recompute_method": "block"}
SELECTIVE = {"trainer.strategy.recompute_granularity": "selective"}
TWO_PARTS = {"trainer.strategy.recompute_modules": ["core_attn", "mlp"]}
SEQUENCE_PARALLEL = {"trainer.strategy.sequence_parallel": True}
CONCATENATED = {"model.pair_layout": "concatenated"}
OFFLOAD = {**FULL, "model.offload_layer_inputs": True}
TILES = {"model.mlp_tile_tokens": 14}  # which no number of rows here divides by

# Sizes of cp, tp, pp, dp, then settings. Every rank's place in the layout differs between these.
PARALLEL = {
    "one process": (1, 1, 1, 1, {}),
    "cp 2": (2, 1, 1, 1, {}),
    "cp 4": (4, 1, 1, 1, {}),
    "tp 2": (1, 2, 1, 1, {}),
    "pp 2": (1, 1, 2, 1, {}),
    "dp 2": (1, 1, 1, 2, {}),
    "cp 2, tp 2": (2, 2, 1, 1, {}),
    "cp 2, tp 2, sequence parallel": (2, 2, 1, 1, SEQUENCE_PARALLEL),
    "cp 2, pp 2": (2, 1, 2, 1, {}),
    "cp 2, full recompute": (2, 1, 1, 1, FULL),
    "tp 2, pp 2, full recompute": (1, 2, 2, 1, FULL),
}
# What both families share: one of them is enough.
MISTRAL = {
    "cp 2, dp 2": (2, 1, 1, 2, {}),
    "cp 2, selective recompute": (2, 1, 1, 1, SELECTIVE),
    "log-probs in chunks of 7": (1, 1, 1, 1, {"model.logprob_chunk_size": 7}),
    "cp 2, offload, tiles": (2, 1, 1, 1, OFFLOAD | TILES),
    "pp 2, offload": (1, 1, 2, 1, OFFLOAD),
    "tp 2, sequence parallel, offload, tiles": (1, 2, 1, 1, SEQUENCE_PARALLEL | OFFLOAD | TILES),
    "tiles": (1, 1, 1, 1, TILES),
    "concatenated, one process": (1, 1, 1, 1, CONCATENATED),
    "concatenated, cp 2, tp 2, sequence parallel": (2, 2, 1, 1, CONCATENATED | SEQUENCE_PARALLEL),
    "concatenated, cp 2, full recompute": (2, 1, 1, 1, CONCATENATED | FULL),
}
QWEN2 = {
    "pp 2, dp 2": (1, 1, 2, 2, {}),
    "cp 2, tp 2, sequence parallel, full recompute": (2, 2, 1, 1, SEQUENCE_PARALLEL | FULL),
    "cp 2, pp 2, selective recompute of two parts": (2, 1, 2, 1, SELECTIVE | TWO_PARTS),
    "block recompute": (1, 1, 1, 1, BLOCK),
    "pp 2, block recompute, offload, tiles": (1, 1, 2, 1, OFFLOAD | BLOCK | TILES),
    "cp 2, tp 2, sequence parallel, tiles": (2, 2, 1, 1, SEQUENCE_PARALLEL | TILES),
    "tp 2, selective recompute of two parts, tiles": (1, 2, 1, 1, SELECTIVE | TWO_PARTS | TILES),
    "concatenated, cp 2, offload, tiles": (2, 1, 1, 1, CONCATENATED | OFFLOAD | TILES),
    "concatenated, cp 2": (2, 1, 1, 1, CONCATENATED),
    "concatenated, pp 2": (1, 1, 2, 1, CONCATENATED),
}
# Every rank has some of the heads: the gradient of a norm that all heads share is the sum over tensor-parallel ranks,
# with sequence parallelism and without.
QWEN3 = {
    "cp 2": (2, 1, 1, 1, {}),
    "tp 2": (1, 2, 1, 1, {}),
    "tp 2, sequence parallel, full recompute": (1, 2, 1, 1, SEQUENCE_PARALLEL | FULL),
    "cp 2, tp 2, sequence parallel": (2, 2, 1, 1, SEQUENCE_PARALLEL),
    "pp 2": (1, 1, 2, 1, {}),
    "concatenated, cp 2, tp 2, sequence parallel, full recompute": (
        *(2, 2, 1, 1),
        CONCATENATED | SEQUENCE_PARALLEL | FULL,
    ),
}
# As Mistral, but for the RoPE scaling.
LLAMA = {"cp 2": (2, 1, 1, 1, {})}
CASES = [
    pytest.param(family, case, id=f"{family}: {name}")
    for family, cases in (
        ("mistral", PARALLEL | MISTRAL),
        ("qwen2", PARALLEL | QWEN2),
        ("qwen3", QWEN3),
        ("llama", LLAMA),
    )
    for name, case in cases.items()
]


@pytest.mark.parametrize(("workbench", "case"), CASES, indirect=["workbench"])
def test_step_equals_hugging_face(workbench, reference, workers, tmp_path, case):
    expected_metrics, expected_gradients = reference
    step, gradients, rows = train_one_step(workbench, workers, tmp_path, case)
    assert step["step"] == 1
    for name in METRICS:
        assert step[name] == pytest.approx(expected_metrics[name], rel=TOLERANCE), name
    norm = assert_equal_gradients(gradients, expected_gradients)
    assert step["grad_norm"] == pytest.approx(float(norm), rel=TOLERANCE)
    assert_own_lengths(rows, workbench.records, case)


def assert_own_lengths(rows_of_ranks: list[list[int]], records, case) -> None:
    """Every micro-batch, in every pipeline stage, has its own pair's rows and padding to 2 · cp and tp at most."""
    cp, tp, pp, _, more = case
    found = sorted(rows for rank in rows_of_ranks for rows in rank)
    split = cp * (tp if SEQUENCE_PARALLEL.items() <= more.items() else 1)
    needed = []
    for record in records:
        trunk, chosen, rejected = record.lengths
        rows = trunk + max(chosen, rejected) - 1 if CONCATENATED.items() <= more.items() else sum(record.lengths) - 1
        needed += [rows / split] * (cp * tp * pp)
    padding = (2 * cp * tp + cp * tp) / split
    assert len(found) == len(needed)
    assert len(set(found)) > 3, "pairs of one length would not show that none is padded to the longest"
    assert all(0 <= got - need < padding for got, need in zip(found, sorted(needed), strict=True)), (found, needed)


@pytest.mark.parametrize("workbench", ["qwen2"], indirect=True)
def test_layouts_have_the_same_gradients(workbench, workers, tmp_path):
    results = [
        train_one_step(workbench, workers, tmp_path / name, (2, 1, 1, 1, settings))
        for name, settings in (("shared_prefix", {}), ("concatenated", CONCATENATED))
    ]
    (_, shared, rows), (_, concatenated, twice) = results
    assert_equal_gradients(shared, concatenated)
    assert sum(map(sum, rows)) < 0.7 * 2 * sum(map(sum, twice)), "the shared prefix runs once"
