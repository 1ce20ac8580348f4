"""Drawings as places on paper: panels one above the other, lines of points in them, a legend. Units are SVG's."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the template `line_plot.svg` lies."""

COLOURS = 8


@dataclass(frozen=True)
class Point:
    """A value at (x, y), the ends of its error bar, and what is shown on hover."""

    x: float
    y: float
    bar: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """`colour` counts from 0. With `marked` each point is a dot."""

    colour: int
    points: tuple[Point, ...]
    marked: bool = True

    @property
    def path(self) -> str:
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


@dataclass(frozen=True)
class Band:
    """A pale area in the colour of a line: its corners, once around."""

    colour: int
    corners: tuple[tuple[float, float], ...]

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.corners)


@dataclass(frozen=True)
class Strip:
    """A part of the panel's width that shows a note on hover."""

    x: float
    width: float
    note: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Title, where it begins, places of the labels below and at the side (the lowest first), what is below, lines,
    and what lies behind them."""

    title: str
    top: int
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    axis: str
    lines: tuple[Line, ...]
    strips: tuple[Strip, ...] = ()
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True)
class Key:
    """A line of the legend, which begins at (x, y)."""

    colour: int
    x: int
    y: int
    label: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The whole drawing. `name` says what it is to who cannot see it, `left` is where panels begin."""

    name: str
    width: int
    left: int
    height: int
    legend: tuple[Key, ...]
    panels: tuple[Panel, ...]
    marked: bool = True
