"""The content of results.json, written and read: nothing in it depends on when the answers were made, or how often."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_longpo import json_input
from nemo_longpo.errors import InputError, one_line

from ..benchmarks import Ability, Benchmark, ModelScores, TaskScores
from ..suites import BENCHMARKS
from .groups import Group, groups_of
from .statistics import Estimate, estimate
from .summary import Measured, Summary

FORMAT = "longpo eval results 1"
"""What results.json calls itself: a later version that is read differently has another number."""


def as_json(summary: Summary, verdict: str) -> dict[str, Any]:
    """Return the content of results.json: nothing in it depends on when or in how many runs the answers were made."""
    first = summary.labels[0]
    return {
        "format": FORMAT,
        "unit": "points of 100",
        "verdict": verdict,
        "models": [
            {"label": model.label, "max_length": model.max_length, "identity": model.identity}
            for model in summary.models
        ],
        "settings": dict(summary.settings),
        "versions": dict(summary.versions),
        "groups": [
            _described(group, first)
            | {
                "benchmarks": list(group.present),
                "complete": group.complete,
                "by_length": [_described(own, first) for own in summary.by_length[group.name]],
            }
            for group in summary.groups
        ],
        "tasks": [_described(task, first) | {"models": _task_means(summary, task)} for task in summary.tasks],
    }


def _described(measured: Measured, first: str) -> dict[str, Any]:
    return {
        "name": measured.name,
        "ability": measured.ability,
        "length": measured.length,
        "models": {label: _numbers(own) for label, own in measured.means.items()},
        "differences": [
            {"model": label, "minus": first} | _numbers(own) | {"low": _rounded(own.low), "high": _rounded(own.high)}
            for label, own in measured.differences.items()
        ],
    }


def _task_means(summary: Summary, task: Measured) -> dict[str, Any]:
    found = {}
    for label, mean in task.means.items():
        scores = summary.scores(label, task)
        assert scores is not None
        prompts = "\n".join(sample.prompt_hash for sample in scores.samples)
        found[label] = _numbers(mean) | {
            "metric": scores.metric,
            "dropped": scores.dropped,
            "shortened": scores.shortened,
            "unscored": scores.unscored,
            "judge": None if scores.judge is None else asdict(scores.judge),
            "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        }
        if categories := _by_category(scores):
            found[label]["categories"] = categories
        if turns := _by_name((name, value) for sample in scores.samples for name, value in sample.parts.items()):
            found[label]["parts"] = turns
    return found


def _by_category(scores: TaskScores) -> dict[str, Any]:
    """The mean of each category of questions, also of each part of one such as "hard, long"."""
    return _by_name(
        (part, sample.score)
        for sample in scores.samples
        if sample.category
        for part in dict.fromkeys([sample.category, *sample.category.split(", ")])
    )


def _by_name(scores: Iterable[tuple[str, float]]) -> dict[str, Any]:
    points: dict[str, list[float]] = defaultdict(list)
    for name, score in scores:
        points[name].append(100 * score)
    return {name: _numbers(estimate(own)) for name, own in sorted(points.items())}


def _numbers(own: Estimate) -> dict[str, Any]:
    return {"mean": _rounded(own.mean), "standard_error": _rounded(own.standard_error), "n": own.n}


def _rounded(value: float | None) -> float | None:
    """Six decimals of a point; never -0.0."""
    return None if value is None else round(value, 6) + 0.0


def read_summary(path: Path) -> tuple[Summary, str]:
    """Return what a results.json says, without the samples, and its verdict.

    Raises InputError if it is damaged, or of another version.
    """
    advice = "give the directory that `longpo eval` wrote, or run it again"
    content = json_input.read_json_object(path, advice)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is not of this version of longpo eval ({FORMAT!r}); {advice}")
    try:
        return _summary(content), str(content["verdict"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}; {advice}") from error


def _summary(content: dict[str, Any]) -> Summary:
    rows = {task["name"]: _row(task["name"], task["ability"]) for task in content["tasks"]}
    groups = {group.name: group for group in groups_of(list(rows.values()))}
    tasks = tuple(_measured(groups[own["name"]], rows, own) for own in content["tasks"])
    return Summary(
        models=tuple(
            ModelScores(label=own["label"], identity=own["identity"], max_length=own["max_length"], tasks=())
            for own in content["models"]
        ),
        settings=dict(content["settings"]),
        versions=dict(content["versions"]),
        tasks=tasks,
        groups=tuple(_measured(groups[own["name"]], rows, own) for own in content["groups"]),
        by_length={
            own["name"]: tuple(_measured(groups[own["name"]], rows, part) for part in own["by_length"])
            for own in content["groups"]
        },
    )


def _row(name: str, ability: Ability) -> TaskScores:
    """A task by its name alone; what is no benchmark of the table is called as it is."""
    row = BENCHMARKS.get(name) or Benchmark(name=name, title=name, ability=ability, build="", metric="")
    return TaskScores(
        benchmark=name,
        length=None,
        metric=row.metric,
        ability=ability,
        title=row.title,
        column=row.column,
        scale=row.scale,
        samples=(),
    )


def _measured(group: Group, rows: Mapping[str, TaskScores], own: dict[str, Any]) -> Measured:
    return Measured(
        name=group.name,
        title=group.title,
        ability=group.ability,
        column=group.column,
        length=own["length"],
        means={label: _estimate(mean) for label, mean in own["models"].items()},
        differences={change["model"]: _estimate(change) for change in own["differences"]},
        benchmarks=group.benchmarks,
        present=tuple(name for name in group.benchmarks if name in rows),
        scale=rows[group.name].scale if group.benchmarks == (group.name,) else 100.0,
    )


def _estimate(numbers: Mapping[str, Any]) -> Estimate:
    error = numbers["standard_error"]
    return Estimate(float(numbers["mean"]), None if error is None else float(error), int(numbers["n"]))
