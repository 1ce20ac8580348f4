"""The report for people and the JSON for programs."""

import json
import math
from dataclasses import replace

import pytest

from nemo_longpo.conversion.comparison.comparison_report import Report, Side, format_report
from nemo_longpo.conversion.comparison.logits import LogitsComparison, SequenceComparison
from nemo_longpo.conversion.comparison.small_files import FieldDifference, FileDifference
from nemo_longpo.conversion.comparison.tensors import TensorComparison

SIDE = Side("models/a", "Hugging Face directory", "MistralForCausalLM", 7241732096)
EXACT = TensorComparison(
    name="model.norm.weight",
    layer=None,
    verdict="exact",
    dtypes=("float32", "float32"),
    shapes=([4], [4]),
    values=4,
)
ROUNDED = replace(EXACT, name="up", layer=0, verdict="rounded", dtypes=("float32", "bfloat16"), largest=1e-3)
APART = replace(EXACT, name="down", layer=1, verdict="different", differing=3, largest=0.5, relative=0.25)
SEQUENCE = SequenceComparison(
    name="random tokens", tokens=128, largest=2e-6, relative=1e-6, same_choice=1.0, divergence=1e-13
)
LOGITS = LogitsComparison(
    tolerance=1e-5, common_rope=False, rounded_to=None, sequences=[SEQUENCE], states=[0.0, 1e-7, 3e-7]
)
EQUAL = Report(
    a=SIDE,
    b=replace(SIDE, path="b"),
    strict=False,
    fields=[],
    files_equal=5,
    files=[],
    tensors=[EXACT],
    logits=LOGITS,
)

THETA = FieldDifference("rope_theta", 1e4, 1e7, True)
WORSE = {
    "configuration": {"fields": [FieldDifference("eos_token_id", 2, 3, False), THETA]},
    "files": {"files": [FileDifference("tokenizer.json", "only in A", False)]},
    "tensors": {"tensors": [EXACT, APART]},
    "logits": {"logits": replace(LOGITS, sequences=[SEQUENCE, replace(SEQUENCE, relative=math.nan)])},
}


def test_equal():
    assert EQUAL.equal
    lines = format_report(EQUAL).splitlines()
    assert lines[0] == "A  models/a: Hugging Face directory, MistralForCausalLM, 7,241,732,096 parameters"
    assert lines[-1] == "equal"
    assert format_report(EQUAL).count("PASS") == 4


def test_allowed_differences_are_equal():
    report = replace(EQUAL, fields=[THETA], logits="not asked for")
    assert report.equal
    assert format_report(report).splitlines()[-1] == "equal, but for rope_theta"
    assert "rope_theta: 10000.0 in A, 10000000.0 in B (allowed)" in format_report(report)
    assert "----  not computed: not asked for" in format_report(report)


@pytest.mark.parametrize("section", WORSE)
def test_one_section_that_fails(section):
    report = replace(EQUAL, **WORSE[section])
    assert not report.equal
    assert format_report(report).splitlines()[-1] == f"different: {section}"
    assert format_report(report).count("FAIL") == 1
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["equal"] is False
    assert [name for name, passed in value["passed"].items() if not passed] == [section]


def test_rounding_fails_only_when_strict():
    report = replace(EQUAL, tensors=[EXACT, ROUNDED])
    assert report.equal
    assert "dtypes: float32 in A, bfloat16 in B" in format_report(report)
    assert not replace(report, strict=True).equal


def test_worst_tensors_come_first():
    many = [replace(APART, name=f"tensor {number}", relative=number / 10) for number in range(9)]
    lost = TensorComparison(name="lost", layer=0, verdict="only in A", shapes=([2], None))
    report = replace(EQUAL, tensors=[*many, EXACT, lost])
    lines = [line.strip() for line in format_report(report).splitlines()]
    assert "tensors        FAIL  9 different, 1 exact, 1 only in A" in lines
    shown = [line.split(":")[0] for line in lines if line.startswith(("tensor ", "lost"))]
    assert shown == ["lost", "tensor 8", "tensor 7", "tensor 6", "tensor 5"]
    assert "and 5 more, which --json lists" in lines
    value = report.to_json()["tensors"]
    assert (value["exact"], value["different"], len(value["differences"])) == (1, 10, 10)


def test_json_has_every_number():
    value = json.loads(json.dumps(replace(EQUAL, **WORSE["logits"]).to_json(), allow_nan=False))
    assert value["a"] == {
        "path": "models/a",
        "kind": "Hugging Face directory",
        "architecture": "MistralForCausalLM",
        "parameters": 7241732096,
    }
    first, second = value["logits"]["sequences"]
    assert (first["relative"], second["relative"]) == (1e-6, None)
    assert value["logits"]["states"] == [0.0, 1e-7, 3e-7]
    assert value["tensors"]["dtypes"] == [["float32", "float32"]]


def test_the_blamed_layers():
    apart = replace(LOGITS, states=[0.0, 1e-4, 3e-4], rounded_to="bfloat16", common_rope=True)
    text = format_report(replace(EQUAL, logits=apart))
    assert "apart from layer 0 (1.0e-04) on" in text
    assert "worst behind layer 1 and the final norm (3.0e-04)" in text
    assert "weights of both rounded to bfloat16" in text
    assert "B computed with the rotary settings of A" in text
