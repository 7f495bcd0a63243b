"""Line charts, bars and heat maps, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

COLOURS = ("#2f6fde", "#e0702b", "#2a9d6f", "#b0479b", "#c9a227", "#5b6ee1", "#d64550", "#4aa5b8")
"""Of lines; readable on white and on black."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40
"""Pixels around a chart's plane: for numbers, the end of the last one, title, axis name."""
LONGEST = 14
"""Letters of a row's name that are shown."""


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
      name: for the legend.
      points: (x, y) in the order they are joined; a y that is not finite leaves a gap.
      dashed: drawn so.
      marks: whether each point has a dot.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    marks: bool = False


def percent(value: float) -> str:
    """0.953 as "95.3%"."""
    return f"{100 * value:.4g}%"


def plain(value: float) -> str:
    """A number in few letters."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value / 1000:.4g}k"


def line_chart(
    title: str,
    x_name: str,
    lines: Sequence[Line],
    *,
    show: Callable[[float], str] = plain,
    log_x: bool = False,
    size: tuple[int, int] = (430, 270),
) -> str:
    """Lines over one plane, with a legend below it.

    Args:
      title: what y is.
      x_name: what x is.
      lines: at least one with a finite point; their colours follow their order.
      show: writes a y.
      log_x: equal factors of x are equally wide.
      size: of the plane with its numbers, in pixels.
    """
    width, height = size
    points = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not points:
        return f"<p>{escape(title)}: nothing was recorded.</p>"
    xs, ys = zip(*points, strict=True)
    bend = math.log if log_x else float
    x_of = _scale(bend(min(xs)), bend(max(xs)), LEFT, width - RIGHT)
    y_ticks = ticks(min(ys), max(ys))
    y_of = _scale(y_ticks[0], y_ticks[-1], height - BOTTOM, TOP)
    x_ticks = sorted(set(xs)) if log_x and len(set(xs)) < 9 else ticks(min(xs), max(xs))
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for y in y_ticks:
        parts += [
            f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y_of(y):.1f}" '
            f'y2="{y_of(y):.1f}"/>',
            _text(LEFT - 6, y_of(y) + 4, show(y), "end"),
        ]
    for x in x_ticks:
        if min(xs) <= x <= max(xs):
            parts.append(_text(x_of(bend(x)), height - BOTTOM + 18, plain(x), "middle"))
    parts.append(_text((LEFT + width - RIGHT) / 2, height - 6, x_name, "middle"))
    for number, line in enumerate(lines):
        parts += _drawn(line, COLOURS[number % len(COLOURS)], lambda x: x_of(bend(x)), y_of)
    legend, below = _legend(lines, width, height)
    body = "\n".join([*parts, *legend])
    return f'<svg viewBox="0 0 {width} {below}" width="{width}" role="img">\n{body}</svg>'


def heat_map(
    title: str,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    most: float | None = None,
    show: Callable[[float], str] = plain,
    size: tuple[int, int] = (430, 240),
) -> str:
    """Numbers [rows, columns] >= 0 as colours, white to blue (dark: black to blue).

    Args:
      title: what the numbers are.
      values: the numbers.
      rows, columns: their names; where there is no room, some are left out.
      most: the number that has full colour; None: the largest.
      show: writes a number into the tooltip of its cell.
      size: in pixels.
    """
    width, height = size
    shown = [_short(name) for name in rows]
    left, top, bottom = max(30, 7 * max(map(len, shown)) + 10), TOP, 22
    most = most or max(float(values.max()), 1e-12)
    wide, high = (width - left) / len(columns), (height - top - bottom) / len(rows)
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    step = math.ceil(16 / high)
    for r, name in enumerate(rows):
        if r % step == 0:
            parts.append(_text(left - 6, top + (r + 0.5) * high + 4, shown[r], "end"))
        for c, column in enumerate(columns):
            share = min(float(values[r, c]) / most, 1.0)
            parts.append(
                f'<rect class="bar" x="{left + c * wide:.2f}" y="{top + r * high:.2f}" '
                f'width="{wide:.2f}" height="{high:.2f}" fill-opacity="{share:.3f}">'
                f"<title>{escape(f'{name}, {column}: {show(float(values[r, c]))}')}</title></rect>"
            )
    longest = max(map(len, columns))
    step = math.ceil((longest * 7 + 8) / wide)
    parts += [
        _text(left + (c + 0.5) * wide, height - 6, columns[c], "middle")
        for c in range(0, len(columns), step)
    ]
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">\n{body}</svg>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at most low to at least high."""
    span = high - low or abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _drawn(
    line: Line, colour: str, x_of: Callable[[float], float], y_of: Callable[[float], float]
) -> list[str]:
    runs: list[list[str]] = [[]]
    for x, y in line.points:
        if math.isfinite(y):
            runs[-1].append(f"{x_of(x):.1f},{y_of(y):.1f}")
        elif runs[-1]:
            runs.append([])
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    parts = [
        f'<polyline class="line" stroke="{colour}"{dash} points="{" ".join(run)}"/>'
        for run in runs
        if len(run) > 1
    ]
    if line.marks or not parts:
        for point in (p for run in runs for p in run):
            x, y = point.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
    return parts


def _legend(lines: Sequence[Line], width: int, height: int) -> tuple[list[str], int]:
    """The names in rows below the plane, and where the last row ends."""
    if len(lines) == 1:
        return [], height
    parts, x, y = [], 4.0, height + 12
    for number, line in enumerate(lines):
        wide = 34 + 6.6 * len(line.name)
        if x > 4 and x + wide > width:
            x, y = 4.0, y + 18
        colour, dash = COLOURS[number % len(COLOURS)], ' stroke-dasharray="6 4"' * line.dashed
        parts += [
            f'<line class="line" x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y - 4}" y2="{y - 4}" '
            f'stroke="{colour}"{dash}/>',
            _text(x + 23, y, line.name, "start"),
        ]
        x += wide
    return parts, y + 8


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
