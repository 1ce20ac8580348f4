"""Curves over training steps, from their numbers: as a drawing for a page, and as a PNG by matplotlib."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from .panels import COLOURS, Band, Key, Line, Panel, Plot, Point, Strip

if TYPE_CHECKING:
    from matplotlib import axes as of_axes, figure as of_figure

MOST_POINTS = 240
_WIDTH, _LEFT, _RIGHT, _TITLE, _HEIGHT, _FOOT, _LINE = 560, 82, 16, 34, 200, 50, 24
_LETTER, _SAMPLE, _APART = 9, 32, 20  # of the legend: a letter on a phone, the line before it, the space behind it
_PAPER_COLOURS = ("#0b5fb0", "#b4490c", "#1b7f4b", "#8a3fa0", "#8a6100", "#007782", "#c02a5c", "#5a606b")


@dataclass(frozen=True)
class Value:
    """A value at a step, or the mean of several from `first` to `last`; not finite where none of them is.

    A `band` from its lower to its upper end is drawn around the line.
    """

    first: int
    last: int
    value: float
    band: tuple[float, float] | None = None

    @property
    def middle(self) -> float:
        return (self.first + self.last) / 2

    @property
    def steps(self) -> str:
        return f"step {self.first:,}" if self.first == self.last else f"mean of steps {self.first:,} to {self.last:,}"


@dataclass(frozen=True)
class Curve:
    """`values` in the order of their steps."""

    label: str
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Curves that share their axes. `unit` says what is measured; `limits` are shown whole, whatever the values."""

    name: str
    title: str
    unit: str
    curves: tuple[Curve, ...]
    limits: tuple[float, ...] = ()

    @property
    def finite(self) -> list[Value]:
        return [own for curve in self.curves for own in curve.values if math.isfinite(own.value)]


def thinned(values: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> tuple[Value, ...]:
    """Return at most `most` values: where there are more, each is the mean of as many consecutive ones."""
    size = max(1, math.ceil(len(values) / most))
    return tuple(_mean(values[begin : begin + size]) for begin in range(0, len(values), size))


def _mean(values: Sequence[tuple[int, float]]) -> Value:
    finite = [value for _, value in values if math.isfinite(value)]
    mean = math.fsum(finite) / len(finite) if finite else math.nan
    return Value(values[0][0], values[-1][0], mean)


def shown(value: float, digits: int = 6) -> str:
    """So many digits, thousands separated, with a minus sign as wide as a digit."""
    rounded = float(f"{value:.{digits}g}")
    text = f"{rounded:,.0f}" if 1e6 <= abs(rounded) < 1e15 else f"{rounded:,.{max(digits, 6)}g}"
    return text.replace("e-0", "e-").replace("e+", "e").replace("-", "−")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round values at even distances, at least two, from at most `low` to at least `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)) + 1e-290:  # equal, but for rounding
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = _round_step((high - low) / (most - 1))
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def _round_step(least: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def draw(graph: Graph, *below: Graph) -> Plot:
    """Return the drawing: the graphs one below the other, with the legend of the first.

    Each graph needs at least one finite value. A curve is broken where it is not finite.
    """
    legend, rows = _legend([curve.label for curve in graph.curves])
    top, apart = rows * _LINE, _TITLE + _HEIGHT + _FOOT
    graphs = (graph, *below)
    return Plot(
        name=f"{', '.join(own.title for own in graphs)} over steps",
        width=_WIDTH,
        left=_LEFT,
        height=top + len(graphs) * apart,
        legend=legend,
        panels=tuple(_panel(own, top + place * apart) for place, own in enumerate(graphs)),
        marked=False,
    )


def _panel(graph: Graph, top: int) -> Panel:
    up = _levels(graph)
    across = ticks(min(own.first for own in graph.finite), max(own.last for own in graph.finite), 7)
    bottom = top + _TITLE + _HEIGHT

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - across[0]) / (across[-1] - across[0])

    def y(value: float) -> float:
        return round(bottom - _HEIGHT * (value - up[0]) / (up[-1] - up[0]), 2)

    lines, bands = [], []
    for place, curve in enumerate(graph.curves):
        for part in _unbroken(curve):
            points = tuple(Point(x(own.middle), y(own.value)) for own in part)
            lines.append(Line(place % COLOURS, points, marked=len(points) == 1))
            ends = [(x(own.middle), *own.band) for own in part if own.band is not None]
            if len(ends) > 1:
                around = [(at, y(high)) for at, _, high in ends] + [(at, y(low)) for at, low, _ in reversed(ends)]
                bands.append(Band(place % COLOURS, tuple(around)))
    return Panel(
        title=f"{graph.title}: {graph.unit}" if graph.unit else graph.title,
        top=top,
        across=tuple((x(step), shown(step)) for step in across if step.is_integer()),
        up=tuple((y(level), shown(level)) for level in up),
        axis="step",
        lines=tuple(lines),
        strips=tuple(_strips(graph, x(across[0]), x(across[-1]), x)),
        bands=tuple(bands),
    )


def _levels(graph: Graph) -> list[float]:
    """From 0 where that costs little of the height."""
    values = [end for own in graph.finite for end in (own.value, *(own.band or ()))] + list(graph.limits)
    low, high = min(values), max(values)
    return ticks(min(low, 0.0) if low < high / 2 else low, max(high, 0.0) if high > low / 2 else high)


def _unbroken(curve: Curve) -> Iterator[list[Value]]:
    for finite, part in groupby(curve.values, key=lambda own: math.isfinite(own.value)):
        if finite:
            yield list(part)


def _legend(labels: Sequence[str]) -> tuple[tuple[Key, ...], int]:
    """Return the legend and its number of rows; none for one curve without a label."""
    keys: list[Key] = []
    x, row = 12, 1
    for place, label in enumerate(labels):
        width = _SAMPLE + min(len(label), 80) * _LETTER
        if x > 12 and x + width > _WIDTH:
            x, row = 12, row + 1
        keys.append(Key(place % COLOURS, x, row * _LINE - 6, label))
        x += width + _APART
    return (tuple(keys), row) if any(labels) else ((), 0)


def _strips(graph: Graph, left: float, right: float, x: Callable[[float], float]) -> Iterator[Strip]:
    """A strip around each step that says the values of all curves there; it ends half-way to its neighbours."""
    at: dict[float, list[tuple[str, Value]]] = {}
    for curve in graph.curves:
        for own in curve.values:
            at.setdefault(own.middle, []).append((curve.label, own))
    middles = sorted(at)
    places = [x(middle) for middle in middles]
    edges = [left, *((here + there) / 2 for here, there in pairwise(places)), right]
    for middle, (begin, end) in zip(middles, pairwise(edges), strict=True):
        values = [f"{label} {shown(own.value)}".strip() for label, own in at[middle]]
        yield Strip(begin, max(end - begin, 0.1), f"{at[middle][0][1].steps}: {', '.join(values)}")


def png(graph: Graph) -> bytes:
    """Return the graph as a PNG. It needs matplotlib, and no display."""
    image, (axes,) = figure(1, (7.0, 4.2))
    for place, curve in enumerate(graph.curves):
        values = [own.value if math.isfinite(own.value) else math.nan for own in curve.values]
        marker = "o" if len(values) == 1 else ""
        colour, dashes = _PAPER_COLOURS[place % COLOURS], ("-", (0, (6, 3)))[place % 2]
        middles = [own.middle for own in curve.values]
        axes.plot(middles, values, color=colour, linestyle=dashes, marker=marker, label=_plain(curve.label))
        ends = [(own.middle, *own.band) for own in curve.values if own.band is not None]
        if ends:
            steps, lows, highs = zip(*ends, strict=True)
            axes.fill_between(steps, lows, highs, color=colour, alpha=0.13, linewidth=0)
    levels = _levels(graph)
    axes.set_ylim(levels[0], levels[-1])
    axes.set_title(_plain(graph.title), loc="left")
    axes.set_ylabel(graph.unit)
    axes.set_xlabel("step")
    if any(curve.label for curve in graph.curves):
        axes.legend(frameon=False)
    content = BytesIO()
    image.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: no formulas between dollar signs, no hiding by a leading underscore."""
    plain = text.replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


def figure(columns: int, inches: tuple[float, float]) -> tuple["of_figure.Figure", list["of_axes.Axes"]]:
    """Return plain axes with room for their labels; needs no display and no global state of pyplot."""
    from matplotlib.figure import Figure

    made = Figure(figsize=inches, dpi=150, layout="constrained")
    all_axes = [made.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return made, all_axes
