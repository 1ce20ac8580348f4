"""The page's plots, in the units of their data; page.html makes SVG of them, page.css the colours.

No plotting library: each bar and point says its values on hover, and colours follow the light or dark page.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nemo_longpo.terminal import number

from .shard_summary import Values, even_edges
from .summary_text import signed

_MOST_POINTS = 2000
_SIDES = ("chosen", "rejected")


class Mark(NamedTuple):
    """A bar from `x` to `x` + `width`, or a point if it has no width. `kind` is its class, `note` is shown on hover."""

    kind: str
    note: str
    x: float
    width: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Marks over two axes, each given as even edges."""

    title: str
    axis: str
    across: list[float]
    up: list[float]
    marks: list[Mark]
    legend: tuple[str, ...] = ()
    median: float | None = None


def draw(summary: dict[str, Any], values: Values) -> list[Plot]:
    """Return the page's plots in order."""
    rows = [
        ("Margins of documents", "log p(chosen) − log p(rejected)", {"signed": "margin_per_document"}),
        ("Similarity of the answers to a turn", "0 nothing shared, 1 equal", {"all": "similarity_per_turn"}),
        ("Length of answers", "tokens", {side: f"{side}_tokens_per_turn" for side in _SIDES}),
        ("Mean log-prob of answers", "log p per token", {side: f"{side}_logp_per_token" for side in _SIDES}),
        ("Length of sequences", "tokens", {"all": "tokens_per_sequence"}),
    ]
    plots = [histogram(summary, *row) for row in rows]
    plots.insert(
        1, scatter("Margin and length", "tokens", values["tokens_per_sequence"], values["margin_per_document"])
    )
    return plots


def histogram(summary: dict[str, Any], title: str, axis: str, series: dict[str, str]) -> Plot:
    """Return bars of one of the summary's histograms with its median, or of several over the same edges side by side.

    `series` maps classes to names. The class "signed" stands for "rejected" below 0 and "chosen" above.
    """
    marks, (first, *others) = [], series.values()
    across = summary["histograms"][first]["edges"]
    width = (across[1] - across[0]) / len(series)
    for place, (kind, name) in enumerate(series.items()):
        for low, high, count in zip(across[:-1], across[1:], summary["histograms"][name]["counts"], strict=True):
            shown = ("rejected" if high <= 0 else "chosen") if kind == "signed" else kind
            marks.append(
                Mark(shown, f"{low:g} to {high:g}: {count}".replace("-", "−"), low + place * width, width, count)
            )
    return Plot(
        title=title,
        axis=axis,
        across=across,
        up=even_edges(0, max(mark.y for mark in marks), bins=4, whole=True),
        marks=marks,
        legend=tuple(series) if others else (),
        median=None if others else summary["distributions"][first]["median"],
    )


def scatter(title: str, axis: str, xs: np.ndarray, ys: np.ndarray) -> Plot:
    """Return points, of class "chosen" above 0 and "rejected" below; at most 2,000 of them, evenly picked."""
    across = even_edges(float(xs.min()), float(xs.max()), bins=8, whole=True)
    up = even_edges(min(float(ys.min()), 0.0), max(float(ys.max()), 0.0), bins=5)
    marks = []
    for index in np.unique(np.linspace(0, len(xs) - 1, min(len(xs), _MOST_POINTS)).round().astype(int)):
        note = f"document {index + 1}: {number(xs[index])} tokens, margin {signed(ys[index])}"
        marks.append(Mark("chosen" if ys[index] > 0 else "rejected", note, xs[index], 0, ys[index]))
    return Plot(title=title, axis=axis, across=across, up=up, marks=marks)
