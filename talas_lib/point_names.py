"""Names beside the points of a figure, placed so that they can be read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# where a name may stand, in points from its mark: the nearest places first, each all around
_PLACES = [
    (radius * math.cos(math.radians(angle)), 0.8 * radius * math.sin(math.radians(angle)))
    for radius in (8, 13, 20, 28, 38, 50, 65)
    for angle in (20, -20, 160, 200, 55, -55, 125, 235, 90, 270)
]
_FAR = 14.0  # points from which a line leads to the mark
_CROSSED = (
    60.0  # what a line through a name or a mark counts beside covered square pixels, at each of some points of it
)


def place_labels(
    axes: Axes,
    labels: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    *,
    lines: Sequence[float] = (),
    size: float = 8,
) -> list[Any]:
    """Name the marks at (x, y) so that no name covers another, a mark or a horizontal line, as far as there is room.

    Returns the annotations. lines: heights of the lines, in data units; size: of the names, in points.
    The layout of the figure is fixed by this: call it last. A name far from its mark has a line to it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()
    room, point = axes.get_window_extent(renderer), figure.dpi / 72
    marks = axes.transData.transform(np.column_stack([x, y])) if len(labels) else np.zeros((0, 2))
    taken = [Bbox.from_extents(*(mark - 4 * point), *(mark + 4 * point)) for mark in marks]
    heights: Any = axes.transData.transform([(x[0], line) for line in lines])[:, 1] if lines and len(x) else []
    taken += [Bbox.from_extents(room.x0, height - point, room.x1, height + point) for height in heights]
    found = []
    for number in np.argsort(marks[:, 0], kind="stable"):
        own = taken[number]
        tried = [_name(axes, labels[number], (x[number], y[number]), place, size, renderer) for place in _PLACES]
        boxes = [box for _, box in tried]
        in_the_way = [other for other in taken if other is not own]
        costs = [
            _covered(box, taken, room) + _crossed(marks[number], np.array(place) * point, in_the_way)
            for box, place in zip(boxes, _PLACES, strict=True)
        ]
        best = int(np.argmin(costs))
        for place, (name, _) in enumerate(tried):
            if place != best:
                name.remove()
        taken.append(boxes[best])
        found.append(tried[best][0])
    return found


def _name(
    axes: Axes, label: str, mark: tuple[float, float], place: tuple[float, float], size: float, renderer: Any
) -> Any:
    """A name at a place beside its mark, with a line to it where it is far, and its box in pixels."""
    from matplotlib.text import Text

    dx, dy = place
    line = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.6} if math.hypot(dx, dy) > _FAR else None
    side: dict[str, Any] = {"ha": "center" if abs(dx) < 2 else "left" if dx > 0 else "right", "va": "center"}
    if abs(dy) > abs(dx):
        side["va"] = "bottom" if dy > 0 else "top"
    name = axes.annotate(label, mark, place, textcoords="offset points", fontsize=size, arrowprops=line, **side)
    name.update_positions(renderer)
    return name, Text.get_window_extent(name, renderer)


def _covered(box: Any, taken: Sequence[Any], room: Any) -> float:
    """How much of what is there a name would cover, and how much of it would be cut off, in square pixels."""
    inside = type(box).intersection(box, room)
    cut = box.width * box.height - (inside.width * inside.height if inside is not None else 0)
    covered = [type(box).intersection(box, other) for other in taken]
    return float(10 * cut + sum(part.width * part.height for part in covered if part is not None))


def _crossed(mark: np.ndarray, offset: np.ndarray, boxes: Sequence[Any]) -> float:
    """What the way from a mark to its name runs through."""
    way = [mark + share * offset for share in np.linspace(0.1, 1, 10)]
    return _CROSSED * sum(box.contains(*at) for at in way for box in boxes)
