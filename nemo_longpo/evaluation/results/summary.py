"""Everything that the result files say, computed from the scores once. All numbers are points of 100."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..benchmarks import Ability, ModelScores, TaskScores
from .groups import Cell, Group, groups_of
from .statistics import Estimate, combine, estimate, paired


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
        """Return what stands in a column of the paper's tables. RULER in other words is not what the paper measured."""
        if self.settings.get("wording") and column.startswith("RULER"):
            return None
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
