"""Graphs one below the other, and bands around their curves."""

import math

from nemo_longpo.evaluation.results import pages
from nemo_longpo.line_plot.curves import Curve, Graph, Value, draw, png


def graph(title: str, *curves: Curve) -> Graph:
    return Graph(name=title, title=title, unit="%", curves=curves, limits=(0.0, 100.0))


def values(*rows: tuple[int, float, tuple[float, float] | None]) -> tuple[Value, ...]:
    return tuple(Value(step, step, value, band) for step, value, band in rows)


WIDE = Curve("a", values((0, 20.0, (10.0, 30.0)), (10, 50.0, (40.0, 60.0))))
PLAIN = Curve("b", values((0, 90.0, None), (10, 80.0, None)))


def test_a_band_lies_around_its_line():
    panel = draw(graph("long", PLAIN, WIDE)).panels[0]
    (band,) = panel.bands
    places = {float(label): y for y, label in panel.up}
    scale = (places[0] - places[100]) / 100
    y = {round((places[0] - y) / scale) for _, y in band.corners}
    assert (band.colour, y) == (1, {10, 30, 40, 60})
    (left, high), _, _, (back, low) = band.corners
    assert left == back == panel.lines[1].points[0].x
    assert low > panel.lines[1].points[0].y > high  # SVG counts downwards


def test_the_axis_holds_the_bands():
    beyond = Curve("a", values((0, 120.0, (90.0, 170.0)), (10, 120.0, (90.0, 170.0))))
    assert float(draw(graph("long", beyond)).panels[0].up[-1][1]) >= 170


def test_graphs_below_each_other_share_one_legend():
    plot = draw(graph("long", WIDE, PLAIN), graph("short", PLAIN))
    alone = draw(graph("long", WIDE, PLAIN))
    first, second = plot.panels
    assert first == alone.panels[0]
    assert [key.label for key in plot.legend] == ["a", "b"]
    assert min(y for y, _ in second.up) > max(y for y, _ in first.up)
    assert plot.height - alone.height == second.top - first.top
    assert plot.name == "long, short over steps"


def test_a_band_is_broken_with_its_curve():
    broken = values((0, 1.0, (0.0, 2.0)), (1, 2.0, (1.0, 3.0)), (2, math.nan, None), (3, 3.0, (2.0, 4.0)))
    panel = draw(graph("long", Curve("a", broken))).panels[0]
    assert len(panel.lines) == 2
    assert len(panel.bands) == 1  # one point makes no area


def test_drawings_hold_the_band():
    svg = pages.svg_of(draw(graph("long", WIDE)))
    assert svg.count("<polygon") == 1
    without = graph("long", Curve("a", tuple(Value(own.first, own.last, own.value) for own in WIDE.values)))
    assert "<polygon" not in pages.svg_of(draw(without))
    assert png(graph("long", WIDE)) != png(without)
