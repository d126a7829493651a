"""Small figures as SVG text: drawn in a millisecond, sharp at any size, and with a word on every mark under the pointer.

`plots` makes the figures of reports. These are for looking around: a widget shows the markup and redraws it while a slider
moves, and the same `Drawing` as a cell's result is a static figure, with or without a browser.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from talas_lib.files import atomic_write_text

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
INK, FAINT = "#333333", "#DDDDDD"
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


@dataclass(frozen=True)
class Drawing:
    """A figure: its inner markup, and its size in pixels."""

    body: str
    width: float
    height: float
    title: str = ""

    @property
    def markup(self) -> str:
        """The whole `<svg>` element."""
        size = f'width="{self.width:.0f}" height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        style = 'style="max-width:100%;background:#fff" font-family="sans-serif" font-size="12"'
        named = f' role="img" aria-label="{escape(self.title)}"' if self.title else ""
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}{named}>{self.body}</svg>'

    def __repr__(self) -> str:
        return f"Drawing({self.title!r}, {self.width:.0f} x {self.height:.0f})"

    def _repr_svg_(self) -> str:
        return self.markup

    def save(self, path: Path) -> None:
        """Write an .svg file in one move."""
        atomic_write_text(path, self.markup)


def escape(text: str) -> str:
    """Text as XML may hold it."""
    return html.escape(_FORBIDDEN.sub(" ", text))


def label(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, turn: float = 0) -> str:
    """A line of text. anchor: start, middle or end; turn: degrees around the point."""
    weight = ' font-weight="bold"' if bold else ""
    rotated = f' transform="rotate({turn:.0f} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}"{weight}{rotated}>{escape(text)}</text>'


def beside(drawings: Sequence[Drawing], *, gap: float = 12, title: str = "") -> Drawing:
    """Drawings in a row, with a title above all of them."""
    top, x, parts = (24 if title else 0), 0.0, []
    for drawing in drawings:
        parts.append(f'<g transform="translate({x:.1f} {top})">{drawing.body}</g>')
        x += drawing.width + gap
    if title:
        parts.append(label(0, 15, title, bold=True))
    return Drawing("".join(parts), x - gap, top + max(d.height for d in drawings), title)


def stacked(drawings: Sequence[Drawing], *, title: str = "") -> Drawing:
    """Drawings above one another."""
    top, y, parts = (24 if title else 0), 0.0, []
    for drawing in drawings:
        parts.append(f'<g transform="translate(0 {top + y:.1f})">{drawing.body}</g>')
        y += drawing.height
    if title:
        parts.append(label(0, 15, title, bold=True))
    return Drawing("".join(parts), max(d.width for d in drawings), top + y, title)


# ---- the kinds of figure


def scatter(
    points: np.ndarray,
    texts: Sequence[str],
    groups: Sequence[str],
    *,
    title: str,
    marked: Sequence[int] = (),
    size: float = 520,
) -> Drawing:
    """Points `[n, 2]` with a text each under the pointer, one colour a group, the marked ones ringed.

    Groups beyond the palette share its last colour. The scale is the same in both directions.
    """
    names = list(dict.fromkeys(groups))
    colours = {name: PALETTE[min(i, len(PALETTE) - 1)] for i, name in enumerate(names)}
    low, high = points.min(0), points.max(0)
    scale = (size - 20) / max(float((high - low).max()), 1e-12)
    at = 10 + (points - (low + high) / 2) * scale * (1, -1) + (size - 20) / 2
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colours[group]}" fill-opacity="0.65">'
        f"<title>{escape(f'{group}: {text}')}</title></circle>"
        for (x, y), text, group in zip(at, texts, groups, strict=True)
    ]
    dots += [
        f'<circle cx="{at[i, 0]:.1f}" cy="{at[i, 1]:.1f}" r="8" fill="none" stroke="{INK}" stroke-width="1.5"/>'
        for i in marked
    ]
    frame = f'<rect width="{size}" height="{size}" fill="none" stroke="{FAINT}"/>'
    key = [
        f'<circle cx="{size + 16}" cy="{16 + 20 * i}" r="5" fill="{colours[name]}"/>{label(size + 28, 20 + 20 * i, name[:24])}'
        for i, name in enumerate(names[:12])
    ]
    drawn = Drawing(frame + "".join(dots) + "".join(key), size + 190, size)
    return stacked([drawn], title=title)


def matrix(values: np.ndarray, texts: Sequence[str], *, title: str, note: str = "", size: float = 150) -> Drawing:
    """A square matrix of cosines `[n, n]`, blue above 0 and orange below, with the pair and its value under the pointer."""
    cell, shown = size / len(values), [escape(text if len(text) <= 70 else f"{text[:67]}...") for text in texts]
    edge = f'width="{cell:.2f}" height="{cell:.2f}"'
    colours = _shades(values)
    parts = [
        f'<rect x="{j * cell:.1f}" y="{18 + i * cell:.1f}" {edge} fill="{colours[i][j]}"><title>'
        f"{values[i, j]:.2f}: {shown[i]} | {shown[j]}</title></rect>"
        for i in range(len(values))
        for j in range(len(values))
    ]
    return Drawing("".join(parts) + label(0, 12, title) + label(0, size + 33, note), size, size + 40)


def _shades(values: np.ndarray) -> list[list[str]]:
    """Colours: white at 0, the palette's blue at 1, its orange at -1."""
    ends = np.where(np.asarray(values)[..., None] >= 0, (0, 114, 178), (213, 94, 0))
    mixed = np.round(255 + (ends - 255) * np.minimum(np.abs(values), 1)[..., None]).astype(int)
    return [[f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in row] for row in mixed.tolist()]


def lines(
    x: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    at: int | None = None,
    size: tuple[float, float] = (250, 190),
) -> Drawing:
    """Values over named steps at equal distances, one line a series; at: the step that is looked at."""
    width, height = size
    left, top, bottom = 52, 22, 40
    every = np.concatenate([np.asarray(values, dtype=float) for values in series.values()])
    every = every[np.isfinite(every)]
    ticks = _ticks(float(every.min()), float(every.max())) if len(every) else [0.0, 1.0]
    low, high = ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        across = left + (width - left - 8) * step / max(len(x) - 1, 1)
        return across, top + (height - top - bottom) * (high - value) / (high - low)

    parts = [label(4, 13, title)]
    for tick in ticks:
        y = place(0, tick)[1]
        parts.append(f'<line x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(label(left - 4, y + 4, f"{tick:.4g}", anchor="end"))
    shown = range(0, len(x), max(1, -(-len(x) // 6)))
    parts += [label(place(i, low)[0], height - bottom + 14, x[i], anchor="middle") for i in shown]
    parts.append(label((left + width) / 2, height - bottom + 30, xlabel, anchor="middle"))
    for number, (name, values) in enumerate(series.items()):
        parts.append(
            _line(name, list(map(place, range(len(x)), values)), x, values, PALETTE[number], number, left, top)
        )
    if at is not None:
        across = place(at, low)[0]
        ends = f'x1="{across:.1f}" x2="{across:.1f}" y1="{top}" y2="{height - bottom}"'
        parts.append(f'<line {ends} stroke="{INK}" stroke-dasharray="3 3"/>')
    return Drawing("".join(parts), width, height, title)


def _line(
    name: str,
    places: Sequence[tuple[float, float]],
    x: Sequence[str],
    values: Sequence[float],
    colour: str,
    number: int,
    left: float,
    top: float,
) -> str:
    """One series: its path without what is not finite, a dot with its value a step, and its name."""
    there = [i for i, value in enumerate(values) if np.isfinite(value)]
    path = " ".join(f"{places[i][0]:.1f},{places[i][1]:.1f}" for i in there)
    dots = "".join(
        f'<circle cx="{places[i][0]:.1f}" cy="{places[i][1]:.1f}" r="3" fill="{colour}">'
        f"<title>{escape(f'{name}, {x[i]}: {values[i]:.4g}')}</title></circle>"
        for i in there
    )
    named = f'<text x="{left + 6}" y="{top + 12 + 13 * number}" fill="{colour}">{escape(name)}</text>'
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>{dots}{named}'


def bars(values: Mapping[str, float], notes: Mapping[str, str], *, title: str, width: float = 620) -> Drawing:
    """One bar a name, to the right of 0 or to the left; notes: what is shown under the pointer."""
    finite = [value for value in values.values() if np.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    left, row = (240 if low < 0 else 190), 24  # a number stands to the left of a bar that goes there
    scale = (width - left - 60) / max(high - low, 1e-12)
    zero = left - low * scale
    parts = []
    for i, (name, value) in enumerate(values.items()):
        y = 6 + i * row
        parts.append(label(left - 56 if low < 0 else left - 8, y + 12, name[:26], anchor="end"))
        if not np.isfinite(value):
            continue
        start, length = zero + min(value, 0) * scale, abs(value) * scale
        colour = PALETTE[0] if value >= 0 else PALETTE[1]
        parts.append(
            f'<rect x="{start:.1f}" y="{y}" width="{length:.1f}" height="{row - 8}" fill="{colour}">'
            f"<title>{escape(notes.get(name, name))}</title></rect>"
        )
        end = (start + length + 4, "start") if value >= 0 else (start - 4, "end")
        parts.append(label(end[0], y + 12, f"{value:+.1f}", anchor=end[1]))
    height = 12 + row * len(values)
    parts.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}" stroke="{INK}"/>')
    return stacked([Drawing("".join(parts), width, height)], title=title)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that reach from below `low` to above `high`, at about `count` steps."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(step * i) for i in np.arange(first, last + 1)]
