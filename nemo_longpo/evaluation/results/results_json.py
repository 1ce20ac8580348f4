"""The content of results.json. Nothing in it depends on when, or in how many runs, the answers were made."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..benchmarks import TaskScores
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
