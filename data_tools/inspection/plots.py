"""The page's plots as inline SVG. Colours come from the page's style sheet, through classes."""

from collections.abc import Callable, Collection

import numpy as np

from .markup import Html, element
from .numbers import minus, number, signed
from .shard_summary import even_edges

_WIDTH, _HEIGHT = 400, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 380, 14, 172
_MOST_LABELS = 7
_MOST_POINTS = 2000

Histogram = dict[str, list[float]]
Scale = Callable[[float], float]


def histogram(title: str, axis: str, series: dict[str, Histogram], *, median: float | None = None) -> Html:
    """Bars of one histogram, or of several over the same edges side by side; the key of a series is its class.

    The series "signed" takes the class "rejected" below 0 and "chosen" above. `median` gets a line of its own.
    """
    edges = next(iter(series.values()))["edges"]
    levels = even_edges(0, max(max(data["counts"]) for data in series.values()), bins=4, whole=True)
    x, y = _scale(edges, _LEFT, _RIGHT), _scale(levels, _BOTTOM, _TOP)
    shapes = _grid(edges, x, levels, y)
    for place, (name, data) in enumerate(series.items()):
        for low, high, count in zip(edges[:-1], edges[1:], data["counts"], strict=True):
            width = (x(high) - x(low) - 1) / len(series)
            kind = name if name != "signed" else "rejected" if high <= 0 else "chosen"
            shapes.append(_bar(x(low) + 0.5 + place * width, width, y(count), kind, f"{low:g} to {high:g}: {count}"))
    if median is not None:
        shapes += _median(median, x)
    return _figure(title, axis, series if len(series) > 1 else (), shapes)


def scatter(title: str, axis: str, xs: np.ndarray, ys: np.ndarray) -> Html:
    """Points, of class "chosen" above 0 and "rejected" below; at most 2,000 of them, evenly picked."""
    picked = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), _MOST_POINTS)).round().astype(int))
    across = even_edges(float(xs.min()), float(xs.max()), bins=8, whole=True)
    up = even_edges(min(float(ys.min()), 0.0), max(float(ys.max()), 0.0), bins=5)
    x, y = _scale(across, _LEFT, _RIGHT), _scale(up, _BOTTOM, _TOP)
    points = [
        element(
            "circle",
            element("title", f"document {index + 1}: {number(xs[index])} tokens, margin {signed(ys[index])}"),
            class_="chosen" if ys[index] > 0 else "rejected",
            cx=_at(x(xs[index])),
            cy=_at(y(ys[index])),
            r=3,
        )
        for index in picked
    ]
    zero = element("line", class_="zero", x1=_LEFT, x2=_RIGHT, y1=_at(y(0)), y2=_at(y(0)))
    return _figure(title, axis, (), [*_grid(across, x, up, y), zero, *points])


def _figure(title: str, axis: str, legend: Collection[str], shapes: list[Html]) -> Html:
    keys = [element("span", name, class_=f"key {name}") for name in legend]
    label = element("text", axis, class_="axis", x=(_LEFT + _RIGHT) / 2, y=_HEIGHT - 6, text_anchor="middle")
    picture = element(
        "svg", *shapes, label, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"{title}, over {axis}"
    )
    return element("figure", element("figcaption", element("b", title), *keys), picture)


def _grid(across: list[float], x: Scale, up: list[float], y: Scale) -> list[Html]:
    """Lines and labels at the values of `up`, labels at round values within `across`."""
    low, high = across[0], across[-1]
    whole = all(float(value).is_integer() for value in across)
    ticks = [value for value in even_edges(low, high, bins=_MOST_LABELS, whole=whole) if low <= value <= high]
    lines = [element("line", x1=_LEFT, x2=_RIGHT, y1=_at(y(value)), y2=_at(y(value))) for value in up]
    names = [element("text", _tick(value), class_="left", x=_LEFT - 6, y=_at(y(value) + 4)) for value in up]
    below = [element("text", _tick(value), class_="below", x=_at(x(value)), y=_BOTTOM + 16) for value in ticks]
    return lines + names + below


def _bar(left: float, width: float, top: float, kind: str, note: str) -> Html:
    title = element("title", minus(note))
    height = _at(_BOTTOM - top)
    return element("rect", title, class_=kind, x=_at(left), y=_at(top), width=_at(width), height=height)


def _median(value: float, x: Scale) -> list[Html]:
    """A line with its value on the side that has more room."""
    at, right = x(value), x(value) < (_LEFT + _RIGHT) / 2
    anchor, beside = ("start", at + 4) if right else ("end", at - 4)
    label = f"median {number(value)}"
    return [
        element("line", class_="median", x1=_at(at), x2=_at(at), y1=_TOP - 8, y2=_BOTTOM),
        element("text", minus(label), class_="median", x=_at(beside), y=_TOP, text_anchor=anchor),
    ]


def _scale(values: list[float], start: float, end: float) -> Scale:
    low, span = values[0], values[-1] - values[0]
    return lambda value: start + (end - start) * (value - low) / span


def _tick(value: float) -> str:
    return minus(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}")


def _at(position: float) -> str:
    return f"{position:.1f}"
