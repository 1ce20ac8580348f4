"""Everything that the result files say, computed from the scores once. All numbers are points of 100."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..benchmarks import Ability, ModelScores, TaskScores
from .groups import Cell, Group, groups_of
from .statistics import Estimate, combine, estimate, paired

FORMAT = "longpo eval results 1"
"""What results.json calls itself: a later version that is read differently has another number."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One benchmark at one length, or a group of them (with the benchmarks that it should hold and those it has).

    `means` and `differences` are by the labels of models. A difference is to the first model, on what both were asked.
    Where people are used to another number than 100 for the best, `scale` is that number.
    """

    name: str
    title: str
    ability: Ability
    column: str
    length: int | None
    means: dict[str, Estimate]
    differences: dict[str, Estimate]
    benchmarks: tuple[str, ...]
    present: tuple[str, ...]
    scale: float = 100.0

    @property
    def complete(self) -> bool:
        return len(self.present) == len(self.benchmarks)

    @property
    def coverage(self) -> str:
        """`` for a whole group, else such as `4 of 13 tasks`."""
        return "" if self.complete else f"{len(self.present)} of {len(self.benchmarks)} tasks"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`tasks` in the order of asking, `groups` as in groups.py, `by_length` the groups' means at every length."""

    models: tuple[ModelScores, ...]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    tasks: tuple[Measured, ...]
    groups: tuple[Measured, ...]
    by_length: Mapping[str, tuple[Measured, ...]]

    @property
    def labels(self) -> list[str]:
        return [model.label for model in self.models]

    def scores(self, label: str, task: Measured) -> TaskScores | None:
        """Return the samples behind one task of one model."""
        own = next(model.tasks for model in self.models if model.label == label)
        return next((s for s in own if (s.benchmark, s.length) == (task.name, task.length)), None)

    def scores_of(self, group: Measured) -> list[TaskScores]:
        """Return the samples of a benchmark by itself, of every model."""
        return [task for model in self.models for task in model.tasks if (task.benchmark,) == group.benchmarks]

    def group(self, name: str) -> Measured | None:
        return next((group for group in self.groups if group.name == name), None)

    def of_column(self, column: str) -> Measured | None:
        """Return what stands in a column of the paper's tables."""
        return next((group for group in self.groups if group.column == column), None)


def summarise(models: Sequence[ModelScores], settings: Mapping[str, Any], versions: Mapping[str, str]) -> Summary:
    """Compute means, groups and the differences between the first model and each other one."""
    rows = {Cell(task.benchmark, task.length): task for model in reversed(models) for task in model.tasks}
    order = {Cell(task.benchmark, task.length): None for model in models for task in model.tasks}
    means, differences = _means(models), _differences(models)
    groups = groups_of([rows[cell] for cell in order])

    def measured(group: Group, cells: Sequence[Cell], length: int | None) -> Measured:
        present = {cell.benchmark for cell in cells}
        return Measured(
            name=group.name,
            title=group.title,
            ability=group.ability,
            column=group.column,
            length=length,
            means=_combined(group, means, cells),
            differences=_combined(group, differences, cells),
            benchmarks=group.benchmarks,
            present=tuple(name for name in group.benchmarks if name in present),
            scale=rows[cells[0]].scale if group.benchmarks == (group.name,) else 100.0,
        )

    alone = {group.name: group for group in groups if group.benchmarks == (group.name,)}
    lengths = sorted({cell.length for cell in order if cell.length is not None})
    return Summary(
        models=tuple(models),
        settings=settings,
        versions=versions,
        tasks=tuple(measured(alone[cell.benchmark], [cell], cell.length) for cell in order),
        groups=tuple(
            measured(group, [cell for cell in order if cell.benchmark in group.benchmarks], None) for group in groups
        ),
        by_length={
            group.name: tuple(
                measured(group, chosen, length)
                for length in lengths
                if (chosen := [c for c in order if c.length == length and c.benchmark in group.benchmarks])
            )
            for group in groups
        },
    )


def _means(models: Sequence[ModelScores]) -> dict[str, dict[Cell, Estimate]]:
    return {
        model.label: {
            Cell(task.benchmark, task.length): estimate(list(_points(task).values()), list(_texts(task).values()))
            for task in model.tasks
            if task.samples
        }
        for model in models
    }


def _differences(models: Sequence[ModelScores]) -> dict[str, dict[Cell, Estimate]]:
    """Of each model but the first, what it scored more than the first on what both were asked."""
    first, *others = ({Cell(task.benchmark, task.length): task for task in model.tasks} for model in models)
    return {
        model.label: {
            cell: found
            for cell, task in first.items()
            if cell in own and (found := paired(_points(task), _points(own[cell]), _texts(task)))
        }
        for model, own in zip(models[1:], others, strict=True)
    }


def _keys(task: TaskScores) -> list[Hashable]:
    """A key for each question; of questions with one id the first pairs with the first, the second with the second."""
    seen: Counter[str] = Counter()
    keys: list[Hashable] = []
    for sample in task.samples:
        keys.append((sample.id, seen[sample.id]))
        seen[sample.id] += 1
    return keys


def _points(task: TaskScores) -> dict[Hashable, float]:
    return {key: 100 * sample.score for key, sample in zip(_keys(task), task.samples, strict=True)}


def _texts(task: TaskScores) -> dict[Hashable, Hashable]:
    """The text that each question shares with others, or itself."""
    return {key: sample.document or key for key, sample in zip(_keys(task), task.samples, strict=True)}


def _combined(group: Group, own: Mapping[str, Mapping[Cell, Estimate]], cells: Sequence[Cell]) -> dict[str, Estimate]:
    """The group's mean of each model over those of the cells that it has."""
    found = {}
    for label, estimates in own.items():
        weights = group.weights([cell for cell in cells if cell in estimates])
        whole = combine((weight, estimates[cell]) for cell, weight in weights.items())
        if whole is not None:
            found[label] = whole
    return found


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
