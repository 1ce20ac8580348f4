"""One global batch through the real NeMo + Megatron-Core stack equals plain Hugging Face: loss, metrics, gradients."""

import pytest
from support import parity_cases
from support.parity import assert_equal_gradients, assert_step_equals_reference, train_one_step

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("workbench", "case"), parity_cases.parameters(), indirect=["workbench"])
def test_step_equals_hugging_face(workbench, reference, workers, tmp_path, case):
    assert_step_equals_reference(workbench, reference, workers, tmp_path, case)


@pytest.mark.parametrize("workbench", ["qwen2"], indirect=True)
def test_layouts_have_the_same_gradients(workbench, workers, tmp_path):
    results = [
        train_one_step(workbench, workers, tmp_path / name, (2, 1, 1, 1, settings))
        for name, settings in (("shared_prefix", {}), ("concatenated", parity_cases.CONCATENATED))
    ]
    (_, shared, rows), (_, concatenated, twice) = results
    assert_equal_gradients(shared, concatenated)
    assert sum(map(sum, rows)) < 0.7 * 2 * sum(map(sum, twice)), "the shared prefix runs once"
