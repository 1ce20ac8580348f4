"""The tables and the figure of the comparison."""

import statistics
from collections.abc import Iterator
from typing import Any

from nemo_longpo.line_plot import curves as drawing

from . import experiment, learning_curves
from .learning_curves import Curves, Mean


def as_json(curves: Curves) -> dict[str, Any]:
    """Return percent of right answers by part, model, seed and length."""
    return {
        "unit": "percent of questions answered right: part -> model -> seed -> tokens",
        "lengths": list(curves.lengths),
        "short_tokens": curves.short_tokens,
        "accuracy": curves.found,
    }


def tables(curves: Curves) -> list[str]:
    """Return Markdown: what every objective ends with, then its accuracy over the steps."""
    return [*_table_of_ends(curves), "", *_table_of_steps(curves), *_rounds(curves)]


def _table_of_ends(curves: Curves) -> list[str]:
    """As Table 1 of the paper: a row for every objective, at its last step, beside the base model."""
    long = curves.lengths[0]
    columns = ("model", "seeds", f"≤ {curves.short_tokens:,} tokens", f"{long:,} tokens")
    ours = learning_curves.last_step(curves, "longpo")
    at_long = curves.at("longpo", ours, long) if ours else {}
    lines = [
        "Percent of questions answered right after the first round, mean ± standard deviation over seeds; last "
        f"column: LongPO above the objective at {long:,} tokens, mean ± standard deviation within seeds, "
        "and in how many seeds it is above.",
        "",
        *_head((*columns, "LongPO is above by")),
    ]
    for part, model, label in _rows(curves):
        values = [curves.at(part, model, length) for length in (None, long)]
        above = learning_curves.paired(at_long, values[1]) if part != "longpo" else []
        count = f", {sum(value > 0 for value in above)} of {len(above)}"
        cells = [label, str(len(values[1])), *map(_cell, values), f"{Mean.of(above)}{count}" if above else ""]
        lines.append(_row(cells))
    return lines


def _rows(curves: Curves) -> Iterator[tuple[str, str, str]]:
    """Yield part, model and label of everything that the first table compares, as far as it was measured."""
    yield from [(experiment.BASE, experiment.BASE, "base")] if experiment.BASE in curves.found else []
    for part, label in experiment.OBJECTIVES.items():
        if (last := learning_curves.last_step(curves, part)) is not None:
            yield part, last, label


def _table_of_steps(curves: Curves) -> list[str]:
    """As Figure 4 of the paper in numbers: long and short accuracy of every objective over the steps."""
    lines = []
    for title, length in ((f"{curves.lengths[0]:,} tokens", curves.lengths[0]), _short(curves)):
        found = {part: curves.over_steps(part, length) for part in experiment.OBJECTIVES if part in curves.found}
        steps = sorted({step for by_step in found.values() for step in by_step})
        if not steps:
            continue
        lines += [f"{title}, after so many steps:", "", *_head(("objective", *map(str, steps)))]
        for part, by_step in found.items():
            lines.append(_row([experiment.OBJECTIVES[part], *(_cell(by_step.get(step, {})) for step in steps)]))
        lines.append("")
    return lines


def _rounds(curves: Curves) -> list[str]:
    """A row for the base, the first round and each further one, at all lengths."""
    lengths = (None, *curves.lengths)
    rows = [("base", experiment.BASE, experiment.BASE)]
    for number in range(2, len(curves.lengths) + 1):
        part = f"round-{number}"
        if (last := learning_curves.last_step(curves, part)) is not None:
            before = [(f"LongPO, round {number - 1}", part, experiment.BEFORE)] if number == 2 else []
            rows += [*before, (f"LongPO, round {number}", part, last)]
    if len(rows) == 1:
        return []
    head = ("model", f"≤ {curves.short_tokens:,} tokens", *(f"{length:,} tokens" for length in curves.lengths))
    lines = ["Rounds:", "", *_head(head)]
    for label, part, model in rows:
        lines.append(_row([label, *(_cell(curves.at(part, model, length)) for length in lengths)]))
    return lines


def _short(curves: Curves) -> tuple[str, None]:
    return f"Up to {curves.short_tokens:,} tokens", None


def _cell(by_seed: dict[int, float]) -> str:
    return str(Mean.of(list(by_seed.values()))) if by_seed else "–"


def _head(columns: tuple[str, ...]) -> list[str]:
    return [_row(columns), "|---" * len(columns) + "|"]


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def graphs(curves: Curves) -> list[drawing.Graph]:
    """Return long and short accuracy over the steps of the first round, then of the further ones at their length.

    The axis of short accuracy is as long as its values need: it is near 100.
    """
    parts = [part for part in experiment.OBJECTIVES if part in curves.found]
    labels = [experiment.OBJECTIVES[part] for part in parts]
    titles = ((f"Questions about {curves.lengths[0]:,} tokens", curves.lengths[0]), _short(curves))
    found = [
        _graph(title, [curves.over_steps(part, length) for part in parts], labels, (0.0, 100.0) if length else ())
        for title, length in titles
    ]
    for number, length in enumerate(curves.lengths[1:], 2):
        over_steps = curves.over_steps(f"round-{number}", length)
        if over_steps:
            found.append(_graph(f"Round {number} of LongPO, {length:,} tokens", [over_steps], ["LongPO"], (0.0, 100.0)))
    return [graph for graph in found if graph.finite]


def _graph(
    title: str, found: list[dict[int, dict[int, float]]], labels: list[str], limits: tuple[float, ...]
) -> drawing.Graph:
    made = []
    for label, by_step in zip(labels, found, strict=True):
        values = []
        for step, by_seed in by_step.items():
            mean = Mean.of(list(by_seed.values()))
            values.append(drawing.Value(step, step, mean.value, mean.band if mean.spread is not None else None))
        made.append(drawing.Curve(label, tuple(values)))
    return drawing.Graph(name=title, title=title, unit="right answers (%)", curves=tuple(made), limits=limits)


def verdict(curves: Curves) -> list[str]:
    """Return what the paper's shape asks, each with what was found: yes, no, or beyond what the seeds can say."""
    long, lines = curves.lengths[0], []
    last = {part: learning_curves.last_step(curves, part) for part in experiment.OBJECTIVES}
    at = {part: curves.at(part, model, long) for part, model in last.items() if model is not None}
    for first, second in (("longpo", "sft_chosen"), ("sft_chosen", "dpo"), ("longpo", "longpo_no_nll")):
        apart = learning_curves.paired(at.get(first, {}), at.get(second, {}))
        if apart:
            mean = Mean.of(apart)
            said = "above" if mean.value > 0 else "below"
            if mean.spread is not None and abs(mean.value) <= mean.spread:
                said = "not apart by more than the spread from"
            seeds = "" if mean.spread is not None else ", one seed"
            names = [experiment.OBJECTIVES[name] for name in (first, second)]
            lines.append(f"- {names[0]} is {said} {names[1]} at {long:,} tokens ({mean} points{seeds}).")
    short = learning_curves.paired(
        curves.at("longpo", last["longpo"] or "", None), curves.at(experiment.BASE, experiment.BASE, None)
    )
    if short:
        lines.append(f"- LongPO's short accuracy against the base: {statistics.fmean(short):+.1f} points.")
    return lines
