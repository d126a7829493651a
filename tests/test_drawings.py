"""Figures as SVG: whole XML with every mark where the numbers put it, and texts that cannot break out of it."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from talas_lib.explore import drawings

NASTY = '<script>alert("x")</script> & \x00\x0b\ud800 "quoted" \U0001f600'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(drawing: drawings.Drawing) -> ElementTree.Element:
    return ElementTree.fromstring(drawing.markup)


def of(drawing: drawings.Drawing, kind: str) -> list[ElementTree.Element]:
    return list(parsed(drawing).iter(f"{SVG}{kind}"))


def titles(drawing: drawings.Drawing) -> list[str]:
    return [element.text or "" for element in of(drawing, "title")]


def test_any_text_is_shown_as_text():
    points = np.array([[0.0, 0.0], [1.0, 1.0]])
    drawing = drawings.scatter(points, [NASTY, "b"], ["one", NASTY], title=NASTY)
    assert len(titles(drawing)) == 2
    assert '<script>alert("x")</script> &' in titles(drawing)[0]
    assert "\U0001f600" in titles(drawing)[0]
    assert "<script" not in drawing.markup
    assert not of(drawing, "script")


def test_points_keep_their_distances_and_stay_inside():
    points = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    drawing = drawings.scatter(points, ["a", "b", "c"], ["g", "g", "h"], title="t", marked=[1], size=300)
    dots = [c for c in of(drawing, "circle") if c.get("r") == "4"]
    at = np.array([[float(c.get("cx")), float(c.get("cy"))] for c in dots])
    assert ((at >= 0) & (at <= 300)).all()
    distance = np.linalg.norm(at[:, None] - at[None], axis=-1)
    assert distance[0, 1] / distance[0, 2] == pytest.approx(3 / 4, abs=0.01)  # one scale for both directions
    assert distance[1, 2] / distance[0, 2] == pytest.approx(5 / 4, abs=0.01)
    assert at[2, 1] < at[0, 1]  # upwards is up
    assert dots[0].get("fill") == dots[1].get("fill") != dots[2].get("fill")
    (ring,) = [c for c in of(drawing, "circle") if c.get("r") == "8"]
    assert (float(ring.get("cx")), float(ring.get("cy"))) == pytest.approx(tuple(at[1]))


def test_points_in_one_place_and_many_groups():
    drawing = drawings.scatter(np.zeros((20, 2)), ["t"] * 20, [f"g{i}" for i in range(20)], title="t")
    assert len(titles(drawing)) == 20


def test_a_matrix_is_blue_above_zero_and_orange_below():
    drawing = drawings.matrix(np.array([[1.0, -1.0], [0.0, 1.5]]), ["a", "b"], title="t", note="n")
    cells = of(drawing, "rect")
    assert [c.get("fill") for c in cells] == ["#0072b2", "#d55e00", "#ffffff", "#0072b2"]
    assert titles(drawing)[:2] == ["1.00: a | a", "-1.00: a | b"]


@pytest.mark.parametrize(
    "values", [[0.0, 1.0, 0.5], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [-3e-9, 2e-9, 0.0], [1e12, -1e12, 3]]
)
def test_a_curve_rises_where_its_values_do(values):
    drawing = drawings.lines(["a", "b", "c"], {"s": values}, title="t", xlabel="x", at=1)
    (path,) = of(drawing, "polyline")
    points = [tuple(map(float, pair.split(","))) for pair in path.get("points").split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    for (_, y1), (_, y2), a, b in zip(points, points[1:], values, values[1:], strict=False):
        assert (y2 - y1) * (b - a) <= 0
        assert abs(y2 - y1) > 1 or abs(b - a) <= 0.01 * np.ptp(values)
    assert all(0 <= y <= drawing.height for _, y in points)
    dashed = [line for line in of(drawing, "line") if line.get("stroke-dasharray")]
    assert float(dashed[0].get("x1")) == pytest.approx(points[1][0], abs=0.1)


def test_what_is_not_finite_is_left_out():
    drawing = drawings.lines(["a", "b", "c"], {"s": [1.0, math.nan, math.inf]}, title="t", xlabel="x")
    assert len(of(drawing, "circle")) == 1
    assert len(titles(drawings.bars({"a": 1.0, "b": math.nan}, {}, title="t"))) == 1
    parsed(drawings.lines(["a"], {"s": [math.nan]}, title="t", xlabel="x"))


def test_bars_begin_at_zero_and_go_both_ways():
    drawing = drawings.bars({"up": 2.0, "down": -1.0}, {"up": "a note"}, title="t")
    up, down = of(drawing, "rect")
    (zero,) = [float(line.get("x1")) for line in of(drawing, "line")]
    assert float(up.get("x")) == pytest.approx(zero, abs=0.1)
    assert float(down.get("x")) + float(down.get("width")) == pytest.approx(zero, abs=0.2)
    assert float(up.get("width")) == pytest.approx(2 * float(down.get("width")), rel=0.01)
    assert titles(drawing) == ["a note", "down"]
    texts = [t.text for t in of(drawing, "text")]
    assert {"+2.0", "-1.0", "up", "down"} <= set(texts)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7.2), (0.001, 0.0011), (5, 5), (0, 0), (-1e-9, 1e9), (99.99, 100)]
)
def test_ticks_are_round_and_reach_around(low, high):
    ticks = drawings._ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-6 * (high - low)
    assert ticks[-1] >= high - 1e-6 * (high - low)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    leading = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert any(leading == pytest.approx(factor) for factor in (1, 2, 2.5, 5))


def test_drawings_side_by_side_and_above_one_another(tmp_path):
    one = drawings.matrix(np.eye(2), ["a", "b"], title="one", size=100)
    row = drawings.beside([one, one, one], gap=10, title="row")
    assert (row.width, row.height) == (320, one.height + 24)
    pile = drawings.stacked([row, one])
    assert (pile.width, pile.height) == (320, row.height + one.height)
    assert len(titles(pile)) == 4 * 4
    pile.save(tmp_path / "figures" / "pile.svg")
    assert (tmp_path / "figures" / "pile.svg").read_text(encoding="utf-8") == pile.markup
    assert pile._repr_svg_() == pile.markup
