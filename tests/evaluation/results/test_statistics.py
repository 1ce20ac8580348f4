"""Means, errors and paired differences against numpy and scipy, and the cases in which there is no error."""

import math

import numpy as np
import pytest
from scipy import stats

from nemo_longpo.evaluation.results.statistics import Estimate, combine, estimate, paired

SCORES = {
    "right or wrong": np.random.default_rng(0).integers(0, 2, 200).astype(float),
    "shares": np.random.default_rng(1).random(37),
    "two": np.array([0.0, 1.0]),
    "far from zero": np.random.default_rng(2).random(50) + 1e6,
}


@pytest.mark.parametrize("name", SCORES)
def test_mean_and_interval(name):
    values = SCORES[name]
    found = estimate(values.tolist())
    assert found.n == len(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(stats.sem(values))
    low, high = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.half_width == pytest.approx((high - low) / 2)


def test_one_question_has_no_error():
    found = estimate([1.0])
    assert found == Estimate(1.0, None, 1)
    assert (found.half_width, found.low, found.high) == (None, None, None)


def test_equal_scores_have_an_error_of_zero():
    assert estimate([0.3] * 5) == Estimate(pytest.approx(0.3), pytest.approx(0, abs=1e-15), 5)


@pytest.mark.parametrize("name", SCORES)
def test_difference_is_that_of_the_paired_test(name):
    before = SCORES[name]
    after = np.roll(before, 1)
    after[0] += 0.5
    found = paired(dict(enumerate(before)), dict(enumerate(after)))
    tested = stats.ttest_rel(after, before)
    assert found is not None
    assert found.mean == pytest.approx((after - before).mean())
    assert found.mean / found.standard_error == pytest.approx(tested.statistic)


def test_only_questions_of_both_pair():
    before = {"a": 0.0, "b": 1.0, "c": 1.0, "dropped after": 1.0}
    after = {"dropped before": 0.0, "c": 0.0, "b": 1.0, "a": 1.0}
    assert paired(before, after) == Estimate(0.0, pytest.approx(stats.sem([1.0, 0.0, -1.0])), 3)
    assert paired(before, {"x": 1.0}) is None
    assert paired({"a": 0.0}, {"a": 1.0}) == Estimate(1.0, None, 1)


def test_error_of_a_mean_of_means():
    rng = np.random.default_rng(4)
    parts = [rng.random(n) for n in (10, 40, 25)]
    weights = (0.5, 0.3, 0.2)
    found = combine(zip(weights, (estimate(part.tolist()) for part in parts), strict=True))
    assert found is not None
    assert found.mean == pytest.approx(sum(w * part.mean() for w, part in zip(weights, parts, strict=True)))
    assert found.standard_error == pytest.approx(
        math.sqrt(sum(w**2 * part.var(ddof=1) / len(part) for w, part in zip(weights, parts, strict=True)))
    )
    assert found.n == 75


def test_a_part_without_error_leaves_the_whole_without():
    assert combine([(0.5, Estimate(1.0, None, 1)), (0.5, Estimate(0.0, 0.1, 9))]) == Estimate(0.5, None, 10)
    assert combine([]) is None


def test_questions_about_one_text_count_as_one_draw():
    """With as many questions on each text, the error is that of the texts' means."""
    values = np.random.default_rng(6).random((12, 5)) + np.random.default_rng(7).random((12, 1))
    texts = np.repeat(np.arange(12), 5).tolist()
    found = estimate(values.ravel().tolist(), texts)
    assert found.mean == pytest.approx(values.mean())
    assert (found.standard_error, found.n) == (pytest.approx(stats.sem(values.mean(axis=1))), 60)
    changed = paired(dict(enumerate(values.ravel())), dict(enumerate(2 * values.ravel())), dict(enumerate(texts)))
    assert changed == Estimate(found.mean, pytest.approx(found.standard_error), 60)
    assert estimate([0.0, 1.0, 1.0], ["book", "book", "book"]).standard_error is None


def test_intervals_of_uneven_texts_hold_the_truth():
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(1000):
        sizes = rng.integers(1, 9, 60)
        values = rng.random(sizes.sum()) + np.repeat(rng.random(60), sizes)
        found = estimate(values.tolist(), np.repeat(np.arange(60), sizes).tolist())
        held += found.low <= 1.0 <= found.high
    assert 0.92 <= held / 1000 <= 0.97


def test_intervals_hold_the_truth_as_often_as_they_say():
    """The difference of two models on the same questions, 2,000 times: 95 % of intervals hold the true one."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(2000):
        hard = 0.5 * rng.random(150)
        before, after = ((rng.random(150) < skill - hard).astype(float) for skill in (0.7, 0.8))
        found = paired(dict(enumerate(before)), dict(enumerate(after)))
        assert found is not None
        held += found.low <= 0.1 <= found.high
    assert 0.935 <= held / 2000 <= 0.965
