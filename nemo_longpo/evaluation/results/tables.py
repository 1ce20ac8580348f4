"""Tables of the report: scores by length, every task, and the one on the terminal (the paper's: paper_layout.py).

A cell is a mean in points of 100 with half of its 95 % interval behind ±.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_longpo.terminal import count, shortened

from .statistics import Estimate
from .summary import Measured, Summary
from .verdict import change, plain

NOTHING = "–"
_LONGEST_LABEL = 24


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells by column; `kind` is "ours", "change" or "paper"."""

    name: str
    cells: tuple[str, ...]
    kind: str = "ours"


@dataclass(frozen=True, kw_only=True)
class Table:
    """`columns` are without that of the rows' names. `notes` stand below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def tokens(length: int) -> str:
    """`128K`, `1M`, `1,000`: powers of 1,024 where they are whole."""
    for size, unit in ((1024**2, "M"), (1024, "K")):
        if length >= size and length % size == 0:
            return f"{length // size}{unit}"
    return f"{length:,}"


def mean_cell(group: Measured | None, label: str) -> str:
    """`68.4 ± 1.2`, or a dash where the model has no such mean."""
    found = group.means.get(label) if group else None
    return NOTHING if found is None or group is None else plain(found, group.scale)


def change_cell(group: Measured | None, label: str) -> str:
    """`+19.6 ± 1.1`, or a dash where the model shares no question with the first."""
    found = group.differences.get(label) if group else None
    return NOTHING if found is None or group is None else change(found, group.scale)


def length_tables(summary: Summary) -> list[Table]:
    """Scores by length: a table for RULER, and one for every other benchmark with lengths."""
    return [
        Table(
            title=f"{heading(group)} by length",
            columns=tuple(tokens(own.length or 0) for own in summary.by_length[group.name]),
            rows=(
                *(
                    Row(name=label, cells=tuple(mean_cell(own, label) for own in summary.by_length[group.name]))
                    for label in summary.labels
                ),
                *(
                    Row(
                        name=f"{label} − {summary.labels[0]}",
                        cells=tuple(change_cell(own, label) for own in summary.by_length[group.name]),
                        kind="change",
                    )
                    for label in summary.labels[1:]
                ),
            ),
        )
        for group in with_lengths(summary)
    ]


def with_lengths(summary: Summary) -> list[Measured]:
    """RULER as one, and every other benchmark that was measured at lengths."""
    of_ruler = {name for group in summary.groups if group.name == "ruler" for name in group.benchmarks}
    return [
        group
        for group in summary.groups
        if summary.by_length[group.name]
        and (group.name == "ruler" or (group.benchmarks == (group.name,) and group.name not in of_ruler))
    ]


def heading(group: Measured) -> str:
    return group.title if group.complete else f"{group.title}, {group.coverage}"


def task_table(summary: Summary) -> Table:
    """Every task at every length, with what the means leave out."""
    rows = []
    for task in summary.tasks:
        name = task.title if task.length is None else f"{task.title} {tokens(task.length)}"
        rows.append(
            Row(
                name=name,
                cells=(
                    *(mean_cell(task, label) for label in summary.labels),
                    *(change_cell(task, label) for label in summary.labels[1:]),
                    _asked(summary, task),
                    *_left_out(summary, task),
                ),
            )
        )
    return Table(
        title="Every task",
        columns=(
            *summary.labels,
            *(f"{label} − {summary.labels[0]}" for label in summary.labels[1:]),
            "questions",
            "dropped",
            "shortened",
            "unscored",
        ),
        rows=tuple(rows),
        notes=(
            "± is half of the 95 % interval. Differences are of the questions that both models were asked. Dropped "
            "questions did not fit the model, shortened ones lost their middle by the rules of their benchmark, and "
            "unscored answers got no rating that can be read.",
        ),
    )


def _asked(summary: Summary, task: Measured) -> str:
    """The number of questions, of each model where they differ, and of the pairs where those are fewer."""
    means = _same([f"{task.means[label].n:,}" if label in task.means else "0" for label in summary.labels])
    pairs = _same([f"{own.n:,}" for own in task.differences.values()])
    return means if pairs in ("", means) else f"{means} ({pairs} in common)"


def _left_out(summary: Summary, task: Measured) -> list[str]:
    scores = [summary.scores(label, task) for label in summary.labels]
    return [
        _same([f"{getattr(own, name):,}" if own else NOTHING for own in scores])
        for name in ("dropped", "shortened", "unscored")
    ]


def _same(values: Sequence[str]) -> str:
    return " / ".join(values if len(set(values)) > 1 else values[:1])


def terminal_table(summary: Summary) -> str:
    """Groups and benchmarks with their changes, in aligned columns."""
    rows = [("", *summary.labels, *(f"{label} − {summary.labels[0]}" for label in summary.labels[1:]))]
    in_groups: set[str] = set()
    for group in summary.groups:
        if group.name == group.ability or group.name.startswith("RULER ") or group.name in in_groups:
            continue
        rows.append(_terminal_row(summary, heading(group), group))
        parts = [task for task in summary.groups if task.name in group.present and task.name != group.name]
        in_groups |= {task.name for task in parts}
        rows += [_terminal_row(summary, f"  {task.title}", task) for task in parts if group.name != "ruler"]
        lengths = summary.by_length[group.name]
        rows += [_terminal_row(summary, f"  {tokens(own.length or 0)}", own) for own in lengths if len(lengths) > 1]
    texts = [[shortened(cell, _LONGEST_LABEL) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in texts) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [f"{row[0]:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in texts
    ) + _missing(summary)


def _terminal_row(summary: Summary, name: str, group: Measured) -> tuple[str, ...]:
    means = [mean_cell(group, label) for label in summary.labels]
    return (name, *means, *(change_cell(group, label) for label in summary.labels[1:]))


def _missing(summary: Summary) -> str:
    """A line for each model that was not asked, or not rated, on everything."""
    lines = []
    for model in summary.models:
        for what, number in (
            ("that did not fit were dropped", sum(task.dropped for task in model.tasks)),
            ("were shortened by the rules of their benchmark", sum(task.shortened for task in model.tasks)),
            ("got no rating that can be read", sum(task.unscored for task in model.tasks)),
        ):
            if number:
                lines.append(f"\n{model.label}: {count(number, 'question')} {what}")
    return "".join(lines)


def interval(own: Estimate, scale: float) -> str:
    """Both ends of the 95 % interval, for a tooltip."""
    if own.low is None or own.high is None:
        return count(own.n, "question")
    low, high = (f"{value * scale / 100:.1f}".replace("-", "−") for value in (own.low, own.high))
    return f"{low} to {high}, {count(own.n, 'question')}"
