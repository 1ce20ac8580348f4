"""Settings of the objective equal plain Hugging Face: loss, metrics and gradients, where sums lie on several ranks.

With the loss in the middle of a step, only a sum that is complete before the preference term bends it gives this.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny_models as tiny, training_pairs as pairs
from support.parity import TOLERANCE, WEIGHT, assert_equal_gradients, train_one_step
from support.reference import longpo_step
from transformers import AutoModelForCausalLM

from nemo_longpo.objective import METRICS

pytestmark = [pytest.mark.distributed, pytest.mark.parametrize("workbench", ["mistral"], indirect=True)]

# Our settings, and what the reference calls them.
OBJECTIVES: dict[str, tuple[dict, dict]] = {
    "ipo": ({"preference": "ipo"}, {"shape": "ipo"}),
    "hinge": ({"preference": "hinge"}, {"shape": "hinge"}),
    "smoothed": ({"label_smoothing": 0.2}, {"exchanged": 0.2}),
    "per token": ({"beta": 2.0, "average_logprobs": True}, {"beta": 2.0, "mean": True}),
    "SimPO": (
        {"beta": 2.0, "average_logprobs": True, "reference_free": True, "target_margin": 1.6},
        {"beta": 2.0, "mean": True, "free": True, "target": 1.6},
    ),
    "by length": ({"beta_exponent": -0.5, "beta_tokens": 20}, {"exponent": -0.5, "at": 20}),
    "ipo per token by length, smoothed": (
        {
            "preference": "ipo",
            "average_logprobs": True,
            "beta_exponent": 0.5,
            "beta_tokens": 20,
            "label_smoothing": 0.1,
        },
        {"shape": "ipo", "mean": True, "exponent": 0.5, "at": 20, "exchanged": 0.1},
    ),
}
PARALLEL = {"cp 2": (2, 1, 1), "tp 2": (1, 2, 1), "pp 2": (1, 1, 2)}


def _by_hugging_face(workbench, records, settings):
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    metrics = longpo_step(
        model, [pairs.plain_record(record) for record in records], **{"beta": 0.1, "weight": WEIGHT} | settings
    )
    return metrics, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def references(workbench):
    return {name: _by_hugging_face(workbench, workbench.records, told) for name, (_, told) in OBJECTIVES.items()}


def _train(workbench, workers, directory, parallel, settings):
    named = {f"model.objective.{name}": value for name, value in settings.items()}
    return train_one_step(workbench, workers, directory, (*parallel, 1, named))[:2]


def _assert_equal(found, expected):
    for name in METRICS:
        assert found[0][name] == pytest.approx(expected[0][name], rel=TOLERANCE), name
    assert_equal_gradients(found[1], expected[1])


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_step_equals_hugging_face(workbench, references, workers, tmp_path, name, parallel):
    settings, _ = OBJECTIVES[name]
    _assert_equal(_train(workbench, workers, tmp_path, PARALLEL[parallel], settings), references[name])


def test_hinge_has_pairs_on_both_sides(workbench, references):
    """Or its parity would show one straight line only."""
    margins = [
        _by_hugging_face(workbench, [record], {"shape": "hinge"})[0]["rewards/margins"] for record in workbench.records
    ]
    assert min(margins) < 1 < max(margins), margins


def _far_from_the_reference(record):
    """The first token of each answer at −200, so that the margin stays what it is."""
    return {
        field: (np.append(np.float32(-200), turns[0][1:]), *turns[1:])
        for field in ("ref_chosen_logps", "ref_rejected_logps")
        for turns in [getattr(record, field)]
    }


@pytest.mark.parametrize("settings", [{}, {"reference_free": True}])
def test_far_reference_gives_finite_gradients(workbench, workers, tmp_path, settings):
    """exp(log-prob − reference's) is infinite in fp32; without a reference, what it says does not matter."""
    far = [replace(record, **_far_from_the_reference(record)) for record in workbench.records]
    tokenizer = tiny.tiny_tokenizer(tiny.DEFAULT_STYLE["mistral"])
    vocab_size = tiny.tiny_model("mistral", tokenizer).config.vocab_size
    bench = replace(workbench, shards=pairs.write_shards(tmp_path / "shards", far, tokenizer, vocab_size))
    records = workbench.records if settings else far
    expected = _by_hugging_face(workbench, records, {"free": True} if settings else {})
    _assert_equal(_train(bench, workers, tmp_path, (2, 1, 1), settings), expected)
