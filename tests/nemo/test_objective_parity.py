"""Settings of the objective equal plain Hugging Face: loss, metrics and gradients, where sums lie on several ranks.

With the loss in the middle of a step, only a sum that is complete before the preference term bends it gives this.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import training_pairs as pairs
from support.parity import TOLERANCE, WEIGHT, assert_equal_gradients, train_one_step
from support.reference import longpo_step
from transformers import AutoModelForCausalLM

from nemo_longpo.costs.flops import PairLengths, training_flops
from nemo_longpo.costs.model_shape import load_shape
from nemo_longpo.objective import METRICS, Objective

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
# Of SoLoPO the rows differ too: short prompts stand behind the document, each with both answers.
SOLOPO: dict[str, tuple[dict, dict]] = {
    "SoLoPO": ({"loss_type": "solopo", "alignment_weight": 0.7}, {"aligned": ["chosen"], "alignment": 0.7}),
    "SoLoPO of both answers, ipo by length per token, smoothed": (
        {
            "loss_type": "solopo",
            "align_rejected": True,
            "preference": "ipo",
            "average_logprobs": True,
            "beta_exponent": 0.5,
            "beta_tokens": 20,
            "label_smoothing": 0.1,
        },
        {
            "aligned": ["chosen", "rejected"],
            "shape": "ipo",
            "mean": True,
            "exponent": 0.5,
            "at": 20,
            "exchanged": 0.1,
        },
    ),
    "SoLoPO without a reference": (
        {"loss_type": "solopo", "reference_free": True, "target_margin": 0.5},
        {"aligned": ["chosen"], "free": True, "target": 0.5},
    ),
}
OBJECTIVES |= SOLOPO
PARALLEL = {"cp 2": (2, 1, 1), "tp 2": (1, 2, 1), "pp 2": (1, 1, 2)}


def _by_hugging_face(workbench, records, settings):
    model = AutoModelForCausalLM.from_pretrained(workbench.hf, dtype=torch.float32)
    metrics = longpo_step(
        model, [pairs.plain_record(record) for record in records], **{"beta": 0.1, "weight": WEIGHT} | settings
    )
    return metrics, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def prompted(workbench, tmp_path_factory):
    """The workbench, with a short prompt for every turn."""
    records = pairs.with_short_prompts(workbench.records, 100)
    shards = pairs.write_tiny_shards(tmp_path_factory.mktemp("prompted") / "shards", records)
    return replace(workbench, shards=shards, records=records)


@pytest.fixture(scope="module")
def references(prompted):
    return {name: _by_hugging_face(prompted, prompted.records, told) for name, (_, told) in OBJECTIVES.items()}


def _train(workbench, workers, directory, parallel, settings):
    named = {f"model.objective.{name}": value for name, value in settings.items()}
    return train_one_step(workbench, workers, directory, (*parallel, 1, named))[:2]


def _assert_equal(found, expected):
    assert set(METRICS) <= set(expected[0])
    for name, value in expected[0].items():
        assert found[0][name] == pytest.approx(value, rel=TOLERANCE), name
    assert_equal_gradients(found[1], expected[1])


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_step_equals_hugging_face(prompted, references, workers, tmp_path, name, parallel):
    settings, _ = OBJECTIVES[name]
    _assert_equal(_train(prompted, workers, tmp_path, PARALLEL[parallel], settings), references[name])


# Every way in which rows of several trees lie on ranks, or are computed again.
FULL = {"trainer.strategy.recompute_granularity": "full"}
SEQUENCE_PARALLEL = {"trainer.strategy.sequence_parallel": True}
CONCATENATED = {"model.pair_layout": "concatenated"}
ARRANGEMENTS = {
    "one process": (1, 1, 1, 1, {}),
    "cp 4": (4, 1, 1, 1, {}),
    "cp 2, dp 2": (2, 1, 1, 2, {}),
    "cp 2, full recompute": (2, 1, 1, 1, FULL),
    "cp 2, tp 2, sequence parallel": (2, 2, 1, 1, SEQUENCE_PARALLEL),
    "cp 2, pp 2, full recompute": (2, 1, 2, 1, FULL),
    "concatenated, one process": (1, 1, 1, 1, CONCATENATED),
    "concatenated, cp 2, tp 2, sequence parallel": (2, 2, 1, 1, CONCATENATED | SEQUENCE_PARALLEL),
    "concatenated, cp 2, pp 2, full recompute": (2, 1, 2, 1, CONCATENATED | FULL),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_short_prompts_behind_the_document_on_ranks(prompted, references, workers, tmp_path, name):
    *sizes, more = ARRANGEMENTS[name]
    settings, _ = SOLOPO["SoLoPO"]
    named = {f"model.objective.{name}": value for name, value in settings.items()}
    found = train_one_step(prompted, workers, tmp_path, (*sizes, named | more))
    _assert_equal(found[:2], references["SoLoPO"])
    assert set(found[0]) > set(Objective(**settings).metrics)
    _assert_work(prompted, found[0], sizes, more.get("model.pair_layout", "shared_prefix"))


def _assert_work(workbench, step, sizes, layout):
    """Tokens and FLOPs count the short prompts, and the answers behind them once more."""
    shape, tokens, flops = load_shape(str(workbench.checkpoint)), 0, 0.0
    for record in workbench.records:
        short = []
        for prompt, *spans in zip(record.short_prompt_ids, record.chosen_spans, record.rejected_spans, strict=True):
            short.append((len(prompt), *(end - start for start, end in spans)))
        tokens += sum(record.lengths) + sum(map(sum, short))
        flops += training_flops(shape, PairLengths(*record.lengths, short), layout)
    seconds = step["step_seconds"]
    assert step["tokens_per_second"] * seconds == pytest.approx(tokens, rel=1e-5)
    assert step["tflops_per_device"] * math.prod(sizes) * 1e12 * seconds == pytest.approx(flops, rel=1e-5)


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
    bench = replace(workbench, shards=pairs.write_tiny_shards(tmp_path / "shards", far))
    records = workbench.records if settings else far
    expected = _by_hugging_face(workbench, records, {"free": True} if settings else {})
    _assert_equal(_train(bench, workers, tmp_path, (2, 1, 1), settings), expected)
