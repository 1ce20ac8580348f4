"""Groups as the paper computes them, what two models have in common, and what results.json says of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from support.eval_scores import SETTINGS, model_scores

from nemo_longpo.evaluation.benchmarks import JudgedBy
from nemo_longpo.evaluation.results.paper_layout import paper_tables
from nemo_longpo.evaluation.results.results_json import as_json
from nemo_longpo.evaluation.results.summary import summarise
from nemo_longpo.evaluation.suites import SUITES


def scores(names, lengths, seed, n=20):
    rng = np.random.default_rng(seed)
    return {(name, length): rng.random(n).tolist() for name in names for length in lengths}


def summary(*models):
    return summarise(models, SETTINGS, {"nemo_longpo": "1"})


def test_ruler_is_the_mean_over_tasks_then_lengths():
    made = scores(SUITES["ruler"], (4096, 8192), 0)
    del made["ruler_vt", 8192]  # uneven: each length counts by itself
    group = summary(model_scores("m", made)).group("ruler")
    means = {length: [np.mean(v) for (_, own), v in made.items() if own == length] for length in (4096, 8192)}
    errors = [stats.sem(v) / (2 * len(means[length])) for (_, length), v in made.items()]
    assert group.means["m"].mean == pytest.approx(100 * np.mean([np.mean(own) for own in means.values()]))
    assert group.means["m"].standard_error == pytest.approx(100 * np.sqrt(np.sum(np.square(errors))))
    assert group.means["m"].n == 25 * 20


def test_kinds_of_ruler_make_its_average():
    found = summary(model_scores("m", scores(SUITES["ruler"], (4096,), 1)))
    kinds = {"RULER NIAH": 8, "RULER VT": 1, "RULER AGG": 2, "RULER QA": 2}
    means = [count * found.group(kind).means["m"].mean for kind, count in kinds.items()]
    assert found.group("ruler").means["m"].mean == pytest.approx(sum(means) / 13)


def test_abilities_weigh_benchmarks():
    made = scores(SUITES["ruler"], (4096, 8192), 2) | scores(SUITES["infinitebench"], (None,), 3)
    made |= scores(["longbench_v2", *SUITES["short"]], (None,), 4) | scores(["facts"], (64, 128), 6)
    found = summary(model_scores("m", made))
    parts = [found.group(name).means["m"].mean for name in ("ruler", "infinitebench", "longbench_v2", "facts")]
    assert found.group("long").means["m"].mean == pytest.approx(np.mean(parts))
    for name in ("short", "infinitebench"):
        tasks = [np.mean(made[task, None]) for task in SUITES[name]]
        assert found.group(name).means["m"].mean == pytest.approx(100 * np.mean(tasks))


def test_differences_are_of_what_both_were_asked():
    """The second model reads shorter texts and dropped a question, which changes its own mean."""
    before = {("facts", 64): [1.0, 0.0, 1.0, 0.0], ("facts", 128): [0.0] * 4}
    after = {("facts", 64): {"q0": 1.0, "q2": 1.0, "q3": 1.0}}
    group = summary(model_scores("before", before), model_scores("after", after)).group("facts")
    assert group.means["before"].mean == 25.0
    assert group.means["after"].mean == 100.0
    change = group.differences["after"]
    assert (change.mean, change.n) == (pytest.approx(100 / 3), 3)
    assert change.standard_error == pytest.approx(100 * stats.sem([0, 0, 1]))


def test_without_a_question_in_common_there_is_no_difference():
    found = summary(model_scores("a", {("facts", 64): [1.0]}), model_scores("b", {("facts", 128): [1.0]}))
    assert found.group("facts").differences == {}
    assert [task.differences for task in found.tasks] == [{}, {}]


def test_questions_of_one_name_pair_in_their_order():
    one, two = model_scores("a", {("facts", 64): [0.0, 1.0]}), model_scores("b", {("facts", 64): [0.0, 1.0]})
    for model in (one, two):
        for sample in model.tasks[0].samples:
            object.__setattr__(sample, "id", "same")
    assert summary(one, two).group("facts").differences["b"].n == 2


def test_coverage_says_what_a_group_lacks():
    found = summary(model_scores("m", scores(SUITES["smoke"], (256,), 7)))
    assert (found.group("ruler").complete, found.group("ruler").coverage) == (False, "4 of 13 tasks")
    assert found.group("RULER VT").complete
    assert summary(model_scores("m", {("mmlu", None): [1.0]})).group("short").coverage == "1 of 4 tasks"


def test_texts_turns_and_categories_of_questions():
    model = model_scores("m", {("rated", None): [0.2, 0.4, 0.9]})
    for sample, document, category in zip(model.tasks[0].samples, "aab", ("math", "math", "prose"), strict=True):
        object.__setattr__(sample, "document", document)
        object.__setattr__(sample, "category", category)
        object.__setattr__(sample, "parts", {"turn 1": 0.5, "turn 2": 2 * sample.score - 0.5})
    object.__setattr__(
        model.tasks[0], "judge", JudgedBy(name="judge", first_day="2026-01-01", last_day="2026-01-02", rules="ab")
    )
    found = summary(model, model)
    own = as_json(found, "")["tasks"][0]["models"]["m"]
    assert own["standard_error"] == pytest.approx(100 * np.sqrt(2 * (0.4**2 + 0.4**2)) / 3, abs=1e-6)
    assert {name: (row["mean"], row["n"]) for name, row in own["categories"].items()} == {
        "math": (30, 2),
        "prose": (90, 1),
    }
    assert {name: (row["mean"], row["n"]) for name, row in own["parts"].items()} == {
        "turn 1": (50, 3),
        "turn 2": (50, 3),
    }
    assert own["judge"]["name"] == "judge"
    (table,) = paper_tables(found)
    assert table.notes[-1] == "Rated was judged by judge, from 2026-01-01 to 2026-01-02."


def test_results_have_no_minus_zero():
    close = [model_scores("a", {("facts", 64): [0.5 + 1e-12] * 2}), model_scores("b", {("facts", 64): [0.5] * 2})]
    assert "-0.0" not in json.dumps(as_json(summary(*close), ""))


def test_results_say_everything_by_name():
    before = model_scores("before", {("facts", 64): [1.0, 0.0], ("mmlu", None): [1.0]}, dropped=2, shortened=1)
    after = model_scores("after", {("facts", 64): [1.0, 1.0], ("mmlu", None): [1.0]})
    content = json.loads(json.dumps(as_json(summary(before, after), "a verdict")))
    facts, mmlu = content["tasks"]
    assert (facts["name"], facts["length"], facts["ability"]) == ("facts", 64, "long")
    own = facts["models"]["before"]
    assert {name: own[name] for name in ("mean", "n", "metric", "dropped", "shortened", "judge")} == {
        "mean": 50.0,
        "n": 2,
        "metric": "string_match",
        "dropped": 2,
        "shortened": 1,
        "judge": None,
    }
    assert own["standard_error"] == pytest.approx(50.0)
    (change,) = facts["differences"]
    assert (change["model"], change["minus"], change["mean"]) == ("after", "before", 50.0)
    assert change["high"] - change["mean"] == pytest.approx(1.959964 * 50, abs=1e-3)
    (change,) = mmlu["differences"]
    assert change["mean"] == 0.0
    assert change["n"] == 1
    assert (change["standard_error"], change["low"], change["high"]) == (None, None, None)
    assert content["groups"][0]["name"] == "long"
    assert content["models"][0]["identity"]["model"]["weights_sha256"] == "ab" * 32
    assert content["settings"] == SETTINGS


def test_categories_have_means_of_their_own_and_of_their_parts():
    (task,) = model_scores("m", {("longbench_v2", None): [1.0, 0.0, 1.0, 1.0]}).tasks
    categories = ["easy, short", "hard, short", "hard, long", ""]
    samples = tuple(replace(own, category=name) for own, name in zip(task.samples, categories, strict=True))
    model = replace(model_scores("m", {}), tasks=(replace(task, samples=samples),))
    (described,) = as_json(summary(model), "")["tasks"]
    found = described["models"]["m"]["categories"]
    assert {name: (own["mean"], own["n"]) for name, own in found.items()} == {
        "easy": (100.0, 1),
        "easy, short": (100.0, 1),
        "hard": (50.0, 2),
        "hard, long": (100.0, 1),
        "hard, short": (0.0, 1),
        "long": (100.0, 1),
        "short": (50.0, 2),
    }
    plain = as_json(summary(model_scores("m", {("facts", 64): [1.0]})), "")["tasks"][0]["models"]["m"]
    assert "categories" not in plain
