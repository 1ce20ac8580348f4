"""The answer in one line, and what a pipeline may demand of it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_longpo.errors import InputError

from ..benchmarks import Benchmark, TaskScores
from .groups import groups_of
from .statistics import Estimate
from .summary import Summary

_CONDITION = re.compile(r"\s*(?P<name>[^<>]+?)\s*(?P<sign>[<>])\s*(?P<points>[^<>]+?)\s*")


@dataclass(frozen=True)
class Condition:
    """`short<-1.0`: the difference of a group, last model minus first, is below (or above) a number of points."""

    name: str
    sign: str
    points: float

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.points:g}"


def parse_conditions(texts: Sequence[str], benchmarks: Sequence[Benchmark], models: int) -> list[Condition]:
    """Read the values of --fail-if.

    Raises InputError if one is malformed, if it names what these benchmarks do not measure, or if there is one model.
    """
    if texts and models < 2:
        raise InputError(f"--fail-if {texts[0]} compares the last model with the first; give two models")
    return [_condition(text, benchmarks) for text in texts]


def _condition(text: str, benchmarks: Sequence[Benchmark]) -> Condition:
    found = _CONDITION.fullmatch(text)
    try:
        points = float(found["points"]) if found else math.nan
    except ValueError:
        points = math.nan
    if found is None or not math.isfinite(points):
        raise InputError(
            f"--fail-if {text!r} should be a name, < or >, and a number of points, as in 'short<-1.0'; correct it"
        )
    names = [group.name for group in groups_of([_unanswered(row) for row in benchmarks])]
    if found["name"] not in names:
        raise InputError(
            f"--fail-if {text}: {found['name']} is not measured here; name one of {', '.join(names)}, or add its "
            "benchmarks to --suite"
        )
    return Condition(found["name"], found["sign"], points)


def _unanswered(row: Benchmark) -> TaskScores:
    return TaskScores(
        benchmark=row.name,
        length=None,
        metric=row.metric,
        ability=row.ability,
        title=row.title,
        column=row.column,
        samples=(),
    )


def failures(conditions: Sequence[Condition], summary: Summary) -> list[str]:
    """Return a sentence for each condition that holds. Raises InputError where the models share no question."""
    last = summary.labels[-1]
    held = []
    for condition in conditions:
        group = summary.group(condition.name)
        difference = group.differences.get(last) if group else None
        if difference is None:
            raise InputError(
                f"--fail-if {condition}: {summary.labels[0]} and {last} have no question of {condition.name} in common"
            )
        value = difference.mean
        if value < condition.points if condition.sign == "<" else value > condition.points:
            held.append(f"{condition} holds: {condition.name} is {change(difference)} points")
    return held


def verdict(summary: Summary) -> str:
    """`after against before: long +3.1 ± 0.8, short −0.2 ± 0.4`; of one model, its means."""
    first, last = summary.labels[0], summary.labels[-1]
    alone = len(summary.labels) == 1
    parts = []
    for group in summary.groups:
        found = (group.means if alone else group.differences).get(last)
        if group.name == group.ability and found is not None:
            parts.append(f"{group.name} {plain(found) if alone else change(found)}")
    said = ", ".join(parts) or "no question in common"
    return f"{last}: {said}" if alone else f"{last} against {first}: {said}"


def plain(own: Estimate, scale: float = 100.0) -> str:
    """`68.4 ± 1.2`, and the mean alone where one question is no measure of spread. A perfect score is `scale`."""
    return _number(own.mean, scale) + _plus_minus(own, scale)


def change(own: Estimate, scale: float = 100.0) -> str:
    """`+19.6 ± 1.1`, with a minus sign as wide as the plus."""
    text = _number(own.mean, scale)
    return f"{'' if text.startswith('−') else '+'}{text}{_plus_minus(own, scale)}"


def _plus_minus(own: Estimate, scale: float) -> str:
    return "" if own.half_width is None else f" ± {_number(own.half_width, scale)}"


def _number(points: float, scale: float) -> str:
    """One decimal of 100, two of 10."""
    decimals = 1 if scale >= 100 else 2
    return f"{round(points * scale / 100, decimals) + 0.0:.{decimals}f}".replace("-", "−")
