"""All ways in which two tensors can be equal or differ, and the exact place of a fault in a model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.conversion_cases import CASES

from nemo_longpo.conversion.comparison import tensors
from nemo_longpo.conversion.comparison.tensors import TensorComparison, compare_models, compare_tensors
from nemo_longpo.conversion.exporter import export_checkpoint
from nemo_longpo.conversion.model_on_disk import open_model


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(tensors, "BLOCK", 7)


def compare(a: torch.Tensor, b: torch.Tensor) -> TensorComparison:
    return compare_tensors("name", 3, a, b)


def test_equal_nan_bits_are_exact():
    values = torch.randn(5, 4)
    values[2, 1], values[4, 3] = torch.nan, -torch.inf
    found = compare(values, values.clone())
    assert (found.verdict, found.differing, found.not_finite) == ("exact", 0, 2)


def test_one_flipped_bit_is_found():
    a = torch.ones(5, 4)
    b = a.clone()
    b.view(torch.int32)[3, 2] += 1
    found = compare(a, b)
    assert (found.verdict, found.differing, found.values) == ("different", 1, 20)
    assert found.largest == found.relative == torch.finfo().eps


def test_difference_is_relative_to_largest_value():
    """The largest value is in another block."""
    a = torch.tensor([1.0, -8, 1, 1, 1, 1, 1, 2, 2])
    b = a.clone()
    b[8] = 1.5
    found = compare(a, b)
    assert (found.largest, found.relative) == (0.5, 0.0625)
    assert compare(b, a).largest == 0.5


def test_a_negative_zero_is_another_zero():
    found = compare(torch.zeros(3), -torch.zeros(3))
    assert (found.verdict, found.differing, found.largest) == ("different", 3, 0.0)


def test_lost_number_is_a_difference():
    found = compare(torch.ones(3), torch.tensor([1, torch.nan, 1]))
    assert (found.verdict, found.differing, found.not_finite, found.largest) == ("different", 1, 1, 0.0)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_rounding(narrow):
    values = torch.randn(40)
    values[5] = torch.nan
    rounded = values.to(narrow)
    for a, b in ((values, rounded), (rounded, values)):
        found = compare(a, b)
        assert (found.verdict, found.differing) == ("rounded", 0)
        assert 0 < found.relative < torch.finfo(narrow).eps
    assert compare(rounded, rounded.float()).verdict == "exact"
    assert compare(rounded, rounded.float()).dtypes == (str(narrow).removeprefix("torch."), "float32")
    assert compare(values + 0.1, rounded).verdict == "different"


def test_rounding_between_dtypes_of_equal_width():
    values = torch.randn(40).bfloat16() * 1e-6
    halves = values.half()
    assert not torch.equal(halves.bfloat16(), values)
    assert compare(values, halves).verdict == compare(halves, values).verdict == "rounded"


def test_exchanged_rows_and_axes_are_reported():
    square = torch.randn(6, 6)
    assert compare(square, square.T.contiguous()).reordered
    assert compare(square, square.roll(1, 0)).reordered
    assert not compare(square, square + 1).reordered


def test_another_shape():
    found = compare(torch.ones(3, 4), torch.ones(4, 3))
    assert (found.verdict, found.shapes) == ("different", ([3, 4], [4, 3]))


def compare_directories(a: Path, b: Path) -> dict[str, TensorComparison]:
    return {comparison.name: comparison for comparison in compare_models(open_model(a), open_model(b))}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_imported_tensors_are_exact_both_ways(case, hf_models, nemo_checkpoints):
    stored = {name for path in hf_models[case].glob("*.safetensors") for name in load_file(path)}
    for sides in ((hf_models[case], nemo_checkpoints[case]), (nemo_checkpoints[case], hf_models[case])):
        found = compare_directories(*sides)
        assert found.keys() == stored
        assert {comparison.verdict for comparison in found.values()} == {"exact"}


QUERY, KEY, UP = (f"model.layers.1.{name}.weight" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"))


def exchange_heads(weights: dict[str, torch.Tensor]) -> None:
    weights[QUERY] = weights[QUERY].roll(16, 0).contiguous()


def query_rows_to_key(weights: dict[str, torch.Tensor]) -> None:
    query, key = weights[QUERY].clone(), weights[KEY].clone()
    weights[QUERY][:16], weights[KEY][:16] = key[:16], query[:16]


def flip_a_bit(weights: dict[str, torch.Tensor]) -> None:
    weights[UP].view(torch.int32)[95, 63] += 1


def lose_a_number(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"][0] = torch.nan


FAULTS: dict[Callable[[dict[str, torch.Tensor]], None], tuple[dict[str, int], bool]] = {
    exchange_heads: ({QUERY: 64 * 64}, True),
    query_rows_to_key: ({QUERY: 16 * 64, KEY: 16 * 64}, False),
    flip_a_bit: ({UP: 1}, False),
    lose_a_number: ({"model.norm.weight": 1}, False),
}
"""What is done to the weights → the differing values, by tensor, and whether those are the same in another order."""


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_located(fault, hf_models, nemo_checkpoints, tmp_path):
    damaged = shutil.copytree(hf_models["mistral"], tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    fault(weights)
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    differing, reordered = FAULTS[fault]
    found = compare_directories(nemo_checkpoints["mistral"], damaged)
    apart = {name: comparison for name, comparison in found.items() if comparison.verdict not in ("exact", "rounded")}
    assert {name: comparison.differing for name, comparison in apart.items()} == differing
    assert {comparison.layer for comparison in apart.values()} == ({None} if fault is lose_a_number else {1})
    assert all(comparison.reordered == reordered for comparison in apart.values())


@pytest.mark.slow
def test_export_in_another_dtype_is_rounded(hf_models, nemo_checkpoints, tmp_path):
    narrow = export_checkpoint(nemo_checkpoints["llama"], tmp_path / "narrow", dtype="bfloat16")
    found = compare_directories(hf_models["llama"], narrow)
    assert {(comparison.verdict, comparison.dtypes) for comparison in found.values()} == {
        ("rounded", ("float32", "bfloat16"))
    }


@pytest.mark.slow
def test_other_architecture_shares_few_tensors(hf_models, nemo_checkpoints):
    found = compare_directories(hf_models["mistral"], nemo_checkpoints["qwen2"])
    only = {
        verdict: [name for name, comparison in found.items() if comparison.verdict == verdict]
        for verdict in ("only in A", "only in B")
    }
    assert only["only in A"] == ["lm_head.weight"]
    assert sorted(only["only in B"]) == [
        f"model.layers.{layer}.self_attn.{name}_proj.bias" for layer in range(2) for name in "kqv"
    ]
    assert found["model.embed_tokens.weight"].shapes == ([493, 64], [391, 64])
