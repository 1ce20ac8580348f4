"""Which metrics make which chart, and the tables of numbers below them."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nemo_longpo.evaluation.results import summary, tables
from nemo_longpo.evaluation.results.tables import NOTHING, Row, Table
from nemo_longpo.line_plot.curves import Curve, Graph, shown, thinned

from .runs import Run, finite


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`metrics` of one unit, by what they are called in the legend; of one objective alone if it is not `usual`."""

    name: str
    title: str
    unit: str
    metrics: dict[str, str]
    limits: tuple[float, ...] = ()
    usual: bool = True


def _of_rewards(name: str, title: str, prompt: str = "", *, usual: bool = True) -> Chart:
    curves = {"chosen": "chosen", "rejected": "rejected", "margin": "margins"}
    metrics = {label: f"rewards/{prompt}{metric}" for label, metric in curves.items()}
    return Chart(name=name, title=title, unit="β · (log p − reference log p)", metrics=metrics, usual=usual)


def _of_one(
    name: str, title: str, metric: str, unit: str = "", *, limits: tuple[float, ...] = (0,), usual: bool = True
) -> Chart:
    return Chart(name=name, title=title, unit=unit, metrics={"": metric}, limits=limits, usual=usual)


CHARTS = (
    _of_rewards("rewards", "Rewards"),
    _of_one("accuracy", "Reward accuracy", "rewards/accuracies", "share of pairs with margin > 0", limits=(0, 1)),
    _of_rewards("short-rewards", "Rewards on short prompts", "short_", usual=False),
    _of_one(
        "alignment", "Alignment", "loss/alignment", "distance of rewards on document and short prompts", usual=False
    ),
    Chart(
        name="loss",
        title="Loss",
        unit="nats",
        metrics={"total": "loss", "NLL": "loss/nll", "preference": "loss/longpo"},
    ),
    Chart(
        name="logps",
        title="Log-probs",
        unit="nats, sum over tokens",
        metrics={
            "chosen": "logps/chosen",
            "rejected": "logps/rejected",
            "reference, chosen": "ref_logps/chosen",
            "reference, rejected": "ref_logps/rejected",
        },
    ),
    _of_one("gradient-norm", "Gradient norm", "grad_norm"),
    _of_one("learning-rate", "Learning rate", "lr"),
    _of_one("tokens", "Tokens per second", "tokens_per_second"),
    _of_one("mfu", "MFU", "mfu", "share of the device's bf16 peak"),
    _of_one("flops", "Speed", "tflops_per_device", "TFLOP/s per device"),
    _of_one("seconds", "Time of a step", "step_seconds", "seconds"),
    _of_one("memory", "Memory", "memory_gib", "peak of the first GPU, GiB"),
)


def graphs(runs: Sequence[Run]) -> list[Graph]:
    """Return a graph for each chart with values: of one run its metrics together, of several a metric of every run."""
    return [graph for chart in CHARTS for graph in _graphs(chart, runs) if graph.finite]


def names() -> set[str]:
    """Every name that a graph of `graphs` may have."""
    return {name for chart in CHARTS for name in (chart.name, *(_name(chart, label) for label in chart.metrics))}


def _name(chart: Chart, label: str) -> str:
    return f"{chart.name}-{label}".replace(", ", "-").lower() if label else chart.name


def _graphs(chart: Chart, runs: Sequence[Run]) -> Iterator[Graph]:
    """Every run keeps its colour, also where it has no such metric."""
    if len(runs) == 1:
        parts = [(chart.name, chart.title, [(label, runs[0], metric) for label, metric in chart.metrics.items()])]
    else:
        parts = [
            (
                _name(chart, label),
                ", ".join(filter(None, (chart.title, label))),
                [(run.label, run, metric) for run in runs],
            )
            for label, metric in chart.metrics.items()
        ]
    for name, title, own in parts:
        curves = tuple(Curve(label, thinned(run.values(metric))) for label, run, metric in own)
        yield Graph(name=name, title=title, unit=chart.unit, curves=curves, limits=chart.limits)


def overview(runs: Sequence[Run]) -> Table:
    """A row for every run: how far it came, and what it ended with."""
    return Table(
        title="Runs",
        columns=("steps", "loss", "margin", "accuracy", "gradient norm", "tokens/s", "MFU", "hours"),
        rows=tuple(
            Row(
                name=run.label,
                cells=(
                    f"{int(run.steps[-1]['step']):,}",
                    *(_late(run, name) for name in ("loss", "rewards/margins", "rewards/accuracies", "grad_norm")),
                    *(_combined(run.values(name), statistics.median) for name in ("tokens_per_second", "mfu")),
                    _combined(run.values("step_seconds"), lambda seconds: math.fsum(seconds) / 3600),
                ),
            )
            for run in runs
        ),
        notes=(
            "Loss, margin, accuracy and gradient norm are means of the last tenth of the steps, tokens/s and MFU the "
            "median of all; hours are the sum of the steps, without start and saving.",
        ),
    )


def _late(run: Run, name: str) -> str:
    values = run.values(name)
    return _combined(values[-math.ceil(len(values) / 10) :], statistics.fmean)


def _combined(values: Sequence[tuple[int, float]], combine: Callable[[list[float]], float]) -> str:
    sound = finite(values)
    return shown(combine(sound), 4) if sound else NOTHING


def left_out(runs: Sequence[Run]) -> str:
    """A sentence about the charts that some run has no values for; empty without any."""
    missing: dict[str, list[str]] = {}
    for chart in CHARTS:
        lacking = [run.label for run in runs if not any(finite(run.values(name)) for name in chart.metrics.values())]
        if lacking and (chart.usual or len(lacking) < len(runs)):
            missing.setdefault("" if len(lacking) == len(runs) else f" by {', '.join(lacking)}", []).append(chart.title)
    said = "; ".join(f"{', '.join(titles)}{by}" for by, titles in missing.items())
    return f"Not recorded: {said}. MFU and memory need a GPU, MFU one whose peak is known." if said else ""


@dataclass
class _Scores:
    """A row of scores by length, of the evaluations with these titles."""

    label: str
    titles: list[str]
    cells: dict[int, str]

    def agrees(self, label: str, cells: dict[int, str]) -> bool:
        shared = self.cells.keys() & cells.keys()
        return self.label == label and bool(shared) and all(self.cells[length] == cells[length] for length in shared)

    @property
    def name(self) -> str:
        return self.label if len(self.titles) > 1 else f"{self.titles[0]}: {self.label}"


def lengths_by_round(found: Sequence[tuple[str, summary.Summary]]) -> list[Table]:
    """A table of every benchmark with lengths: the models of all evaluations below each other, lengths side by side.

    A model that several evaluations have with the same scores, such as the base, is one row. Nothing for a single one.
    """
    rows: dict[str, list[_Scores]] = {}
    headings: dict[str, str] = {}
    for title, own in found if len(found) > 1 else ():
        for group in tables.with_lengths(own):
            headings.setdefault(group.name, tables.heading(group))
            present = rows.setdefault(group.name, [])
            for label in own.labels:
                cells = {part.length or 0: tables.mean_cell(part, label) for part in own.by_length[group.name]}
                row = next((row for row in present if row.agrees(label, cells)), None)
                if row is None:
                    present.append(_Scores(label, [title], cells))
                else:
                    row.titles.append(title)
                    row.cells |= cells
    return [_by_round(headings[name], own) for name, own in rows.items()]


def _by_round(heading: str, rows: Sequence[_Scores]) -> Table:
    lengths = sorted({length for row in rows for length in row.cells})
    return Table(
        title=f"{heading}, by length and round",
        columns=tuple(map(tables.tokens, lengths)),
        rows=tuple(
            Row(name=row.name, cells=tuple(row.cells.get(length, NOTHING) for length in lengths)) for row in rows
        ),
        notes=("A dash: not measured in that round.",),
    )


def numbers(run: Run) -> Table:
    """Every metric of a run, also those without a chart."""
    return Table(
        title=run.label,
        columns=("first", "last", "lowest", "highest", "mean of the last tenth", "not finite"),
        rows=tuple(Row(name=name, cells=_numbers(run, name)) for name in run.names),
        notes=(run.warning,) if run.warning else (),
    )


def _numbers(run: Run, name: str) -> tuple[str, ...]:
    values = run.values(name)
    sound = finite(values)
    return (
        shown(values[0][1]),
        shown(values[-1][1]),
        *((shown(min(sound)), shown(max(sound))) if sound else (NOTHING, NOTHING)),
        _late(run, name),
        f"{len(values) - len(sound):,}" if len(values) > len(sound) else NOTHING,
    )


def by_run(title: str, runs: Sequence[Run], values: Sequence[dict[str, str]]) -> Table:
    """What each run has under a name, a column for each run; rows that differ are marked and come first."""
    names = dict.fromkeys(name for own in values for name in own)
    rows = {name: tuple(own.get(name, NOTHING) for own in values) for name in names}
    differ = {name: cells for name, cells in rows.items() if len(set(cells)) > 1}
    dashes = "Shaded rows differ. A dash: the run's command leaves it to the recipe, or no record has it."
    return Table(
        title=title,
        columns=tuple(run.label for run in runs),
        rows=tuple(
            Row(name=name, cells=cells, kind="change" if name in differ else "ours")
            for name, cells in (differ | rows).items()
        ),
        notes=(dashes,) if differ else (),
    )
