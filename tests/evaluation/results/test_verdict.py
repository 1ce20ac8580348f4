"""The line that sums up, and the conditions of pipelines: which hold, and which are refused before any work."""

import pytest
from support.eval_scores import RATED, SETTINGS, model_scores, row

from nemo_longpo.errors import InputError
from nemo_longpo.evaluation.results.summary import summarise
from nemo_longpo.evaluation.results.verdict import failures, parse_conditions, verdict

BENCHMARKS = [row("mmlu"), row("facts"), row("ruler_vt"), RATED]
# Differences in points: mmlu -25 (short -25), facts +50, vt -50 (ruler -50, long 0), rated +10.
BEFORE = model_scores(
    "before",
    {("mmlu", None): [1, 1, 1, 1], ("facts", 64): [0, 0], ("ruler_vt", 64): [1, 1], ("rated", None): [0.5, 0.5]},
)
AFTER = model_scores(
    "after",
    {("mmlu", None): [1, 1, 1, 0], ("facts", 64): [1, 0], ("ruler_vt", 64): [0, 1], ("rated", None): [0.6, 0.6]},
)
SUMMARY = summarise([BEFORE, AFTER], SETTINGS, {})


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("short<-1.0", True),
        ("short<-25", False),
        ("short < -24.9", True),
        ("short>-26", True),
        ("short<-30", False),
        ("long<-0.1", False),
        ("long>-0.1", True),
        ("facts>49.5", True),
        ("facts<0", False),
        ("ruler<-5", True),
        ("ruler_vt<-5e1", False),
        ("ruler_vt<-4.99e1", True),
        ("chat>9.9", True),
        ("rated<9.9", False),
        ("mmlu<+0", True),
    ],
)
def test_conditions(text, holds):
    (condition,) = parse_conditions([text], BENCHMARKS, models=2)
    found = failures([condition], SUMMARY)
    assert bool(found) is holds
    assert all(sentence.startswith(f"{condition} holds: {condition.name} is ") for sentence in found)


def test_the_sentence_says_by_how_much():
    (found,) = failures(parse_conditions(["short<-1.0"], BENCHMARKS, 2), SUMMARY)
    assert found == "short<-1 holds: short is −25.0 ± 49.0 points"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "should be a name, < or >, and a number of points"),
        ("short", "should be a name"),
        ("short<", "should be a name"),
        ("<-1", "should be a name"),
        ("short<=-1", "should be a name"),
        ("short<-1<3", "should be a name"),
        ("short=-1", "should be a name"),
        ("short<one", "should be a name"),
        ("short<nan", "should be a name"),
        ("short<-inf", "should be a name"),
        ("winogrande<-1", "winogrande is not measured here; name one of long, short, chat, ruler"),
        ("infinitebench<-1", "infinitebench is not measured here"),
        ("Short<-1", "Short is not measured here"),
    ],
)
def test_refused_conditions(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_conditions(["short<-1", text], BENCHMARKS, models=2)


def test_conditions_need_two_models_and_common_questions():
    with pytest.raises(InputError, match="give two models"):
        parse_conditions(["short<-1"], BENCHMARKS, models=1)
    assert parse_conditions([], BENCHMARKS, models=1) == []
    apart = summarise([BEFORE, model_scores("after", {("facts", 128): [1]})], SETTINGS, {})
    with pytest.raises(InputError, match="before and after have no question of facts in common"):
        failures(parse_conditions(["facts<0"], BENCHMARKS, 2), apart)


def test_verdict_is_of_the_last_model_against_the_first():
    other = model_scores("other", {("mmlu", None): [0, 0, 0, 0]})
    found = summarise([BEFORE, other, AFTER], SETTINGS, {})
    assert verdict(found) == "after against before: long +0.0 ± 69.3, short −25.0 ± 49.0, chat +10.0 ± 0.0"


def test_verdict_of_one_model_and_of_one_question():
    assert verdict(summarise([AFTER], SETTINGS, {})) == "after: long 50.0 ± 69.3, short 75.0 ± 49.0, chat 60.0 ± 0.0"
    one = [model_scores(label, {("facts", 64): [score]}) for label, score in (("a", 0), ("b", 1))]
    assert verdict(summarise(one, SETTINGS, {})) == "b against a: long +100.0"
    apart = [one[0], model_scores("c", {("facts", 128): [1]})]
    assert verdict(summarise(apart, SETTINGS, {})) == "c against a: no question in common"


def test_no_minus_in_front_of_zero():
    close = [model_scores("a", {("facts", 64): [0.5001] * 2}), model_scores("b", {("facts", 64): [0.5] * 2})]
    assert verdict(summarise(close, SETTINGS, {})) == "b against a: long +0.0 ± 0.0"
