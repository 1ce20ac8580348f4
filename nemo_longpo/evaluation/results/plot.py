"""Accuracy by length as SVG: one panel for RULER and one for every other benchmark with lengths, a line per model.

Lengths stand at even distances, as each is mostly twice the one before. Models stand side by side at a length, so that
their error bars (95 % intervals) do not cover each other.
"""

from collections.abc import Sequence

from nemo_longpo.line_plot.panels import COLOURS, Key, Line, Panel, Plot, Point

from .summary import Measured, Summary
from .tables import heading, interval, tokens, with_lengths

_WIDTH = 720
_LEFT, _RIGHT, _TITLE, _HEIGHT, _FOOT, _LINE = 52, 16, 42, 220, 52, 26
_APART = 9  # between models at one length
_LEVELS = (0, 25, 50, 75, 100)


def draw(summary: Summary) -> Plot | None:
    """Return the plot, or None if nothing was measured at lengths."""
    groups = with_lengths(summary)
    if not groups:
        return None
    legend = tuple(Key(place % COLOURS, 12, 18 + place * _LINE, label) for place, label in enumerate(summary.labels))
    begin = len(legend) * _LINE
    size = _TITLE + _HEIGHT + _FOOT
    panels = tuple(_panel(summary, group, begin + place * size) for place, group in enumerate(groups))
    return Plot(
        name="accuracy by length",
        width=_WIDTH,
        left=_LEFT,
        height=begin + len(groups) * size,
        legend=legend,
        panels=panels,
    )


def _panel(summary: Summary, group: Measured, top: int) -> Panel:
    at = summary.by_length[group.name]
    step = (_WIDTH - _LEFT - _RIGHT) / len(at)
    middles = [_LEFT + (place + 0.5) * step for place in range(len(at))]
    apart = min(_APART, step / (2 * len(summary.labels)))
    lines = []
    for place, label in enumerate(summary.labels):
        aside = (place - (len(summary.labels) - 1) / 2) * apart
        lines.append(Line(place % COLOURS, tuple(_points(at, label, [x + aside for x in middles], top))))
    labels = [tokens(own.length or 0) for own in at]
    return Panel(
        title=heading(group),
        top=top,
        across=tuple(zip(middles, labels, strict=True)),
        up=tuple((_y(top, level), str(level)) for level in _LEVELS),
        axis="tokens of prompt and answer",
        lines=tuple(lines),
    )


def _points(at: Sequence[Measured], label: str, xs: Sequence[float], top: int) -> list[Point]:
    found = []
    for own, x in zip(at, xs, strict=True):
        mean = own.means.get(label)
        if mean is None:
            continue
        ends = None if mean.low is None or mean.high is None else (_y(top, mean.low), _y(top, mean.high))
        note = f"{label}, {tokens(own.length or 0)}: {mean.mean:.1f} ({interval(mean, 100)})"
        found.append(Point(x, _y(top, mean.mean), ends, note))
    return found


def _y(top: int, points: float) -> float:
    """Where a score lies; an interval of the normal distribution may end beyond 0 and 100, and is drawn up to there."""
    return round(top + _TITLE + _HEIGHT * (1 - min(max(points, 0), 100) / 100), 1)
