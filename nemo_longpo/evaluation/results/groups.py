"""Which tasks make which number: the paper's averages, the three abilities, and every benchmark by itself."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..benchmarks import Ability, TaskScores
from ..suites import SUITES


class Cell(NamedTuple):
    """One benchmark at one length, None where it has the lengths of its documents."""

    benchmark: str
    length: int | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """A mean of benchmarks. `units` are averaged with equal weights; each is the benchmarks of one mean.

    `name` is what --fail-if calls it, `column` the paper's name, empty where the paper has no such number.
    """

    name: str
    title: str
    ability: Ability
    units: tuple[tuple[str, ...], ...]
    column: str = ""

    @property
    def benchmarks(self) -> tuple[str, ...]:
        return tuple(name for unit in self.units for name in unit)

    def weights(self, cells: Collection[Cell]) -> dict[Cell, float]:
        """What each of these cells counts in the mean; they sum to 1, and cells of other groups are left out.

        Within a unit: the mean over the benchmarks of one length, then over lengths.
        """
        parts = [_over_lengths([cell for cell in cells if cell.benchmark in unit]) for unit in self.units]
        return _mean([part for part in parts if part])


def _over_lengths(cells: Sequence[Cell]) -> dict[Cell, float]:
    at: dict[int | None, list[Cell]] = defaultdict(list)
    for cell in cells:
        at[cell.length].append(cell)
    return _mean([dict.fromkeys(own, 1 / len(own)) for own in at.values()])


def _mean(parts: Sequence[dict[Cell, float]]) -> dict[Cell, float]:
    return {cell: weight / len(parts) for part in parts for cell, weight in part.items()}


_RULER_KINDS = {
    "NIAH": tuple(name for name in SUITES["ruler"] if name.startswith("ruler_niah_")),
    "VT": ("ruler_vt",),
    "AGG": ("ruler_cwe", "ruler_fwe"),
    "QA": ("ruler_qa_squad", "ruler_qa_hotpot"),
}
COLLECTIONS = (
    Group(
        name="infinitebench",
        title="∞Bench",
        ability="long",
        units=(SUITES["infinitebench"],),
        column="∞Bench",
    ),
    Group(name="ruler", title="RULER", ability="long", units=(SUITES["ruler"],), column="RULER"),
    *(
        Group(name=f"RULER {kind}", title=f"RULER {kind}", ability="long", units=(names,), column=f"RULER {kind}")
        for kind, names in _RULER_KINDS.items()
    ),
)
"""Means that the paper prints beside those of the short tasks, which are all there is of that ability."""


def groups_of(tasks: Sequence[TaskScores]) -> list[Group]:
    """Return the groups that these tasks measure, or measure in part: abilities, then collections, then benchmarks."""
    rows = {task.benchmark: task for task in tasks}
    collections = [group for group in COLLECTIONS if rows.keys() & set(group.benchmarks)]
    whole = [group for group in collections if group.name in SUITES]
    inside = {name: group for group in whole for name in group.benchmarks}
    alone = [
        Group(
            name=name,
            title=row.title,
            ability=row.ability,
            units=((name,),),
            column="" if name in inside and inside[name].column == row.column else row.column,
        )
        for name, row in rows.items()
    ]
    return [*_abilities([*whole, *(group for group in alone if group.name not in inside)]), *collections, *alone]


def _abilities(parts: Sequence[Group]) -> list[Group]:
    """Long: the mean of ∞Bench, RULER and each other benchmark. Short and chat: the mean of their benchmarks."""
    abilities: tuple[Ability, ...] = ("long", "short", "chat")
    units = {ability: tuple(part.units[0] for part in parts if part.ability == ability) for ability in abilities}
    if units["short"]:
        paper = tuple((name,) for name in SUITES["short"])
        units["short"] = (*paper, *(unit for unit in units["short"] if unit not in paper))
    return [
        Group(name=name, title=name, ability=name, units=own, column="Short" if name == "short" else "")
        for name, own in units.items()
        if own
    ]
