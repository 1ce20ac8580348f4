"""The planner meets every case that was measured on a GPU, and its rates are the measured ones."""

import json
from statistics import mean

import pytest

from benchmarks import RESULTS
from benchmarks.engine.plan_cases import layer_cases, read, recipe_cases
from nemo_longpo.costs.devices import GPUS
from nemo_longpo.costs.model_shape import MODELS
from nemo_longpo.costs.rates import KINDS, MEASURED, rates_of
from nemo_longpo.planning.compute import element_wise_widths

TIME, MEMORY = 0.10, 0.03
CASES = [*recipe_cases(), *layer_cases()]


def test_all_measurements_are_there():
    """Three steps with time and memory; nine layers, and the output layer behind five of them."""
    assert len(CASES) == 3 * 2 + 9 + 5


@pytest.mark.parametrize("case", CASES, ids=[f"{case.name}, {case.what}" for case in CASES])
def test_planned_as_measured(case):
    assert abs(case.error) <= (MEMORY if case.what == "GB" else TIME), f"{case.planned:.3g} for {case.measured:.3g}"


def test_table_is_that_of_these_cases():
    written = json.loads((RESULTS / "plan_cases.json").read_text())["cases"]
    assert [row["planned"] for row in written] == pytest.approx([case.planned for case in CASES], rel=1e-3)


def test_h100s_rates_are_its_measurements():
    kernels, rates = read("h100.json")["kernels"], MEASURED["h100-80gb"]
    assert rates.matrices / 1e12 == pytest.approx(kernels["mm 16384x4096x28672 TF"], rel=1e-3)
    assert rates.branch_forward / 1e12 == pytest.approx(kernels["branch cuDNN folded fwd TF"], rel=1e-3)
    assert rates.branch_backward / 1e12 == pytest.approx(kernels["branch cuDNN folded bwd TF"], rel=1e-3)
    (profile,) = (note for note in read("h100.json")["notes"] if "where a step's 8.13 s of kernels go" in note)
    assert f"{rates.trunk_forward / 1e12:.0f} and {rates.trunk_backward / 1e12:.0f} TFLOP/s" in profile
    assert "element-wise and copies about 7 %" in profile
    forward, backward = element_wise_widths(MODELS["mistral-7b"])
    moved = 4 * (131_072 + 9000) * (2 * forward + backward) * 2
    assert rates.element_wise == pytest.approx(moved / (0.07 * 8.13), rel=5e-3)


def test_h200s_rates_are_its_measurements():
    report, rates = read("gpu_engine.json"), MEASURED["h200-141gb"]
    across = [row for row in report["kernels"] if (row["kernel"], row["part"]) == ("cuDNN", "branches to trunk")]
    tiles = [row["tflops"] for row in report["logprobs"] if row["way"] == "tiles"]
    assert rates.matrices / 1e12 == pytest.approx(report["peak_tflops"], rel=1e-3)
    assert rates.branch_forward / 1e12 == pytest.approx(mean(row["forward_tflops"] for row in across), rel=2e-3)
    assert rates.branch_backward / 1e12 == pytest.approx(mean(row["backward_tflops"] for row in across), rel=2e-3)
    assert rates.logprobs / 1e12 == pytest.approx(mean(tiles), rel=1e-3)
    h100 = MEASURED["h100-80gb"]
    assert h100.logprobs / h100.matrices == pytest.approx(rates.logprobs / rates.matrices, rel=2e-3)
    bandwidth = [GPUS[name].memory_bandwidth for name in ("h200-141gb", "h100-80gb")]
    assert rates.element_wise / h100.element_wise == pytest.approx(bandwidth[0] / bandwidth[1], rel=2e-3)


def test_other_gpus_have_the_shares_of_an_h100():
    assert rates_of(GPUS["h100-80gb"]).source.startswith("measured on one H100")
    h800, a800 = rates_of(GPUS["h800-80gb"]), rates_of(GPUS["a800-80gb"])
    for kind in KINDS:
        assert getattr(h800, kind) == pytest.approx(getattr(MEASURED["h100-80gb"], kind))
    assert a800.source == "its data sheet, at the shares of it that an h100-80gb reached"
    assert a800.trunk_backward == pytest.approx(523e12 * 312 / 989)
    assert a800.element_wise == pytest.approx(1.34e12 * 2.04 / 3.35)
    assert a800.host_link == pytest.approx(25e9)
