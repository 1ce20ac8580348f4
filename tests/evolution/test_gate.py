"""The gate, on the files that `longpo eval` and the filter stage write."""

import json
import re

import pytest
from support.eval_scores import SETTINGS, model_scores

from nemo_longpo.data_tools.stages.filter import run_filter
from nemo_longpo.data_tools.stages.registry import StageCall
from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.results import report
from nemo_longpo.evolution.evolution_settings import GateLimits
from nemo_longpo.evolution.gate import GateClosedError, check_pairs, check_short

FIVE = [1.0, 1.0, 1.0, 1.0, 0.0]


@pytest.fixture
def results(tmp_path):
    """Accuracy fell by 20 points on MMLU and at 64 tokens, rose by 60 at 128, and stayed on ARC."""
    before = {
        ("mmlu", None): FIVE,
        ("arc_challenge", None): FIVE,
        ("facts", 64): FIVE,
        ("facts", 128): [1.0, 0, 0, 0, 0],
    }
    after = {
        ("mmlu", None): [1.0, 1.0, 1.0, 0.0, 0.0],
        ("arc_challenge", None): FIVE,
        ("facts", 64): [1.0, 1.0, 1.0, 0.0, 0.0],
        ("facts", 128): FIVE,
    }
    report.write(tmp_path, [model_scores("before", before), model_scores("after", after)], SETTINGS)
    return tmp_path / "results.json"


@pytest.mark.parametrize(("short_tokens", "change"), [(None, -10.0), (64, -20.0), (127, -20.0), (128, 20.0)], ids=str)
def test_short_accuracy_is_the_mean_of_what_is_short(results, short_tokens, change):
    assert check_short(results, GateLimits(20.0, short_tokens), "evaluate-1") == {"short_change": change}


def test_gate_closes_beyond_the_margin(results):
    assert check_short(results, GateLimits(10.0), "evaluate-1")
    said = (
        "the gate is closed: accuracy on short benchmarks fell by 10.00 points, and gate.most_lost is 9.9; the models"
    )
    with pytest.raises(GateClosedError, match=re.escape(said)):
        check_short(results, GateLimits(9.9), "evaluate-1")
    with pytest.raises(GateClosedError, match=re.escape("questions of up to 64 tokens fell by 20.00 points")):
        check_short(results, GateLimits(10.0, 64), "evaluate-1")


def test_gate_without_short_questions_cannot_decide(tmp_path, results):
    with pytest.raises(InputError, match="no questions of up to 32 tokens in common, so the gate cannot decide"):
        check_short(results, GateLimits(1.0, 32), "evaluate-1")
    other = {("facts", 128): FIVE}
    report.write(tmp_path / "long", [model_scores("before", other), model_scores("after", other)], SETTINGS)
    with pytest.raises(InputError, match=r"no short benchmarks in common.*--redo evaluate-1") as caught:
        check_short(tmp_path / "long/results.json", GateLimits(), "evaluate-1")
    assert not isinstance(caught.value, GateClosedError)


def test_damaged_results_are_refused(results):
    content = json.loads(results.read_text())
    results.write_text(json.dumps(content | {"format": "longpo eval results 0"}))
    with pytest.raises(InputError, match=r"is not of this version of longpo eval; .* --redo evaluate-2"):
        check_short(results, GateLimits(), "evaluate-2")
    results.unlink()
    with pytest.raises(InputError, match="does not exist; run `longpo evolve` with --redo evaluate-2"):
        check_short(results, GateLimits(), "evaluate-2")


def test_pairs_are_those_that_the_filter_left(tmp_path):
    """Of three documents with two turns each, one keeps both, one keeps one, one none."""
    turns = [
        {
            "chunk": f"Boat {n} is of {wood}.",
            "instruction": f"{verb} boat {n}?",
            "chosen": chosen,
            "rejected": "By hand.",
        }
        for n, (verb, wood, chosen) in enumerate(
            [
                ("Who rows", "oak", "Anna rows the boat."),
                ("What is the colour of", "elm", "It is painted green."),
                ("Where lies", "fir", "It lies at the northern quay."),
                ("When was built", "ash", "By hand."),
                ("How is made", "larch", "By hand."),
                ("By whom", "pine", "By hand."),
            ]
        )
    ]
    documents = [{"doc_id": str(n), "document": "All boats.", "turns": turns[2 * n : 2 * n + 2]} for n in range(3)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(one) + "\n" for one in documents))
    run_filter(StageCall(stage="filter", inputs=(str(pairs),), output=tmp_path / "filter"))
    written = tmp_path / "filter/report.json"
    assert check_pairs(written, GateLimits(fewest_pairs=2), "data-1") == {"pairs": 2, "turns": 3}
    said = (
        "the gate is closed: 2 of 3 pairs are left after filtering (dropped_identical 3), and gate.fewest_pairs is 3; "
        "give more documents and --redo data-1, or lower it"
    )
    with pytest.raises(GateClosedError, match=re.escape(said)):
        check_pairs(written, GateLimits(fewest_pairs=3), "data-1")
    written.write_text("{}")
    with pytest.raises(InputError, match=r"has no counts documents_out and turns_out; .* --redo data-1"):
        check_pairs(written, GateLimits(), "data-1")
