"""Models that answer always, never, or half right: 100, 0, 50 for every family of tasks; and metrics from the answers.

All goes through the whole evaluation: prompts, token ids, the store of answers, the harness's metrics.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import benchmark_data
from support.evaluation_models import DAY
from support.scripted_model import ALWAYS_RIGHT, ALWAYS_WRONG, HALF_RIGHT, other_letter, scripted
from support.tiny_models import save_tiny

from nemo_longpo.data_tools.engines.engine_options import EngineOptions
from nemo_longpo.evaluation import evaluate, models, plan, suites

pytestmark = pytest.mark.slow  # models and the harness are loaded

COUNT = 4
FAMILIES = {
    "short": ["mmlu", "arc_challenge", "hellaswag", "winogrande"],
    "infinitebench": ["infinitebench_sum", "infinitebench_qa", "infinitebench_mc"],
    "longbench": ["longbench_v2"],
    "ruler": list(suites.SUITES["smoke"]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    import lm_eval.tasks

    files = sorted(Path(lm_eval.tasks.__file__).parent.glob("mmlu/default/mmlu_*.yaml"))
    subjects = [yaml.safe_load(file.read_text())["dataset_name"] for file in files]
    directory = tmp_path_factory.mktemp("data")
    benchmark_data.write_long(directory, count=COUNT)
    benchmark_data.write_rows(
        directory / "own.jsonl",
        (
            {"prompt": f"Lamps of day {n}?", "answers": [str(1000 + n), f"lamp {n}"], "length": 64 * (1 + n // COUNT)}
            for n in range(2 * COUNT)
        ),
    )
    return benchmark_data.write_short(directory, subjects, count=COUNT)


def evaluation(model, data, output, names, **changed):
    return plan.Evaluation(
        models=(str(model),),
        benchmarks=tuple(suites.choose(names)),
        output=output,
        engine=EngineOptions(),
        data=data,
        day=DAY,
        **changed,
    )


def run(asked, script, monkeypatch, tmp_path, text_of=None):
    (prepared,) = plan.prepare(asked)
    engine = scripted(prepared, script, tmp_path / "unused", text_of)
    monkeypatch.setattr(models.EvalModel, "load_engine", lambda _: engine)
    (scores,) = evaluate.evaluate(asked)
    return scores.tasks, engine


@pytest.mark.parametrize(("script", "percent"), [(ALWAYS_RIGHT, 100), (ALWAYS_WRONG, 0), (HALF_RIGHT, 50)])
@pytest.mark.parametrize("family", [pytest.param("short", marks=pytest.mark.slow), *list(FAMILIES)[1:], "questions"])
def test_score_of_known_answers(model, data, tmp_path, monkeypatch, family, script, percent):
    names = FAMILIES.get(family) or [str(data / "own.jsonl")]
    asked = evaluation(
        model, data, tmp_path / "output", names, samples=2, lengths=(2048, 3000) if family == "ruler" else ()
    )
    tasks, _ = run(asked, script, monkeypatch, tmp_path)
    assert len(tasks) == len(names) * (2 if family in ("ruler", "questions") else 1)
    for task in tasks:
        assert len(task.samples) == (57 * 2 if task.benchmark == "mmlu" else 2)
        assert 100 * sum(sample.score for sample in task.samples) / len(task.samples) == pytest.approx(percent)
        assert (task.dropped, task.shortened) == (0, 0)


def test_second_run_asks_nothing_and_scores_the_same(model, data, tmp_path, monkeypatch):
    asked = evaluation(model, data, tmp_path / "output", ["longbench_v2", "winogrande"])
    first, _ = run(asked, HALF_RIGHT, monkeypatch, tmp_path)
    again, engine = run(asked, ALWAYS_WRONG, monkeypatch, tmp_path)
    assert engine.asked == []
    assert first == again


def test_shortened_questions_are_counted_and_refused_only_where_asked(model, data, tmp_path, monkeypatch):
    names = FAMILIES["infinitebench"][1:]
    settings = evaluation(model, data, tmp_path / "output", names)
    opened = models.open_models

    def shorter(*args, **named):
        (one,) = opened(*args, **named)
        return [replace(one, max_length=700)]

    monkeypatch.setattr(models, "open_models", shorter)
    tasks, _ = run(settings, ALWAYS_RIGHT, monkeypatch, tmp_path)
    assert [(task.shortened, task.dropped, len(task.samples)) for task in tasks] == [(COUNT, 0, COUNT)] * 2


def mixed_text(benchmark: str, answers: list[str], right: bool) -> str:
    """Answers that are right in parts, so that metrics differ from 0 and 1."""
    if benchmark == "longbench_v2":
        return f"The correct answer is {answers[0] if right else other_letter(answers[0])}, I think."
    if benchmark == "infinitebench_mc":
        return f"{answers[1] if right else other_letter(answers[1])}. Certainly."
    if benchmark == "infinitebench_sum":
        return f"Day nine.\n{answers[0]}" if right else "Boats of Lima carry snow."
    return f"It was the {answers[0]}, a harbour." if right else "Neither of them."


def from_text(benchmark: str, written: str, answers: list[str]) -> float:
    """The metric of one answer, written again, and only for the answers of this test."""
    if benchmark == "longbench_v2":
        return float(written.split(" is ")[1][0] == answers[0])
    if benchmark == "infinitebench_mc":
        return float(written[0] == answers[1])
    if benchmark == "infinitebench_qa":
        best = 0.0
        for answer in answers:
            left = [
                word
                for word in "".join(c for c in written if c not in ",.").lower().split()
                if word not in ("the", "a")
            ]
            other = [word for word in answer.lower().split() if word != "the"]
            shared = sum((Counter(left) & Counter(other)).values())
            best = max(best, 2 * shared / (len(left) + len(other)))
        return best
    if benchmark == "infinitebench_sum":
        return rouge_lsum(written, answers[0])
    return sum(answer in written for answer in answers) / len(answers)


def rouge_lsum(written: str, expected: str) -> float:
    """Lin (2004), section 3.2: per line of the reference, the union of its longest common subsequences."""

    def words(line: str) -> list[str]:
        return "".join(c if c.isalnum() else " " for c in line.lower()).split()

    def common(a: list[str], b: list[str]) -> set[int]:
        if not a or not b:
            return set()
        if a[-1] == b[-1]:
            return common(a[:-1], b[:-1]) | {len(a) - 1}
        return max(common(a, b[:-1]), common(a[:-1], b), key=len)

    left, right = [words(line) for line in written.split("\n")], [words(line) for line in expected.split("\n")]
    hits = sum(len(set().union(*(common(line, other) for other in left))) for line in right)
    return 2 * hits / (sum(map(len, left)) + sum(map(len, right)))


@pytest.mark.parametrize("family", ["infinitebench", "longbench", "questions"])
def test_metrics_of_texts_equal_an_independent_computation_on_stored_answers(
    model, data, tmp_path, monkeypatch, family
):
    names = FAMILIES.get(family) or [str(data / "own.jsonl")]
    tasks, _ = run(evaluation(model, data, tmp_path / "output", names), HALF_RIGHT, monkeypatch, tmp_path, mixed_text)
    for task in tasks:
        scores = [from_text(task.benchmark, sample.answer, sample.expected) for sample in task.samples]
        assert [sample.score for sample in task.samples] == pytest.approx(scores)
        assert 0 < sum(scores) < len(scores)


def test_metrics_of_choices_equal_an_independent_computation_on_stored_answers(model, data, tmp_path):
    """The log-likelihoods of a random model."""
    names = FAMILIES["short"][1:]
    (scores,) = evaluate.evaluate(evaluation(model, data, tmp_path, names))
    split = {"arc_challenge": "test", "hellaswag": "validation", "winogrande": "validation"}
    for task in scores.tasks:
        rows = map(json.loads, (data / task.benchmark / f"{split[task.benchmark]}.jsonl").read_text().splitlines())
        found = []
        for sample, row in zip(task.samples, rows, strict=True):
            logps = list(sample.answer)
            if task.benchmark == "arc_challenge":
                gold, choices = row["choices"]["label"].index(row["answerKey"]), row["choices"]["text"]
            elif task.benchmark == "hellaswag":
                gold, choices = int(row["label"]), [ending.replace(" [step]", "") for ending in row["endings"]]
            else:
                gold, choices = int(row["answer"]) - 1, ["_", "_"]
            found.append(float(max(range(len(logps)), key=lambda i: logps[i] / len(choices[i])) == gold))
            assert sample.expected == gold
        assert [sample.score for sample in task.samples] == found
