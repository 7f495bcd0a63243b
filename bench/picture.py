"""Draws a suite's result as one PNG: the bars of bench/plot.py, for places that show no HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.plot import BARS, LABELS, LINE, MOST
from bench.report import Row
from moegen.tune.whole import written_whole

if TYPE_CHECKING:
    from PIL import ImageDraw

WIDTH = LABELS + BARS + 60
HEAD = 36
"""Pixels above the bars of a cell, for its name."""
INK, GREY, BLUE, DARK, RED = "#222222", "#bbbbbb", "#8fb3d9", "#223344", "#cc3333"
SIZE = 14


def check_pillow(path: Path | None) -> None:
    """Raise ValueError if a picture is wanted and Pillow is not there to draw it."""
    if path is None:
        return
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        fix = "pip install pillow, or pass --html"
        raise ValueError(f"--png: drawing needs Pillow, which is not here; fix: {fix}") from error


def write_png(path: Path, results: Mapping[str, Sequence[Row]]) -> None:
    """Write the picture whole or not at all; raises OSError if that is not possible."""
    from PIL import Image, ImageDraw

    height = sum(HEAD + LINE * len(rows) for rows in results.values()) + LINE
    image = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    top = 0
    for key, rows in results.items():
        _draw_cell(draw, key, rows, top)
        top += HEAD + LINE * len(rows)
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG")


def _draw_cell(draw: ImageDraw.ImageDraw, key: str, rows: Sequence[Row], top: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(SIZE)
    longest = min(MOST, max((row.ratio_high for row in rows), default=1.0) * 1.05)
    scale = BARS / longest
    draw.text((LABELS, top + 14), key, fill=INK, font=font)
    for number, row in enumerate(rows):
        y = top + HEAD + LINE * number
        low, middle, high = (
            LABELS + min(ratio * scale, BARS)
            for ratio in (row.ratio_low, row.ratio, row.ratio_high)
        )
        draw.rectangle((LABELS, y + 2, middle, y + 20), fill=BLUE if number else GREY)
        draw.line((low, y + 11, high, y + 11), fill=DARK, width=2)
        draw.text((LABELS - 8, y + 11), row.name, fill=INK, font=font, anchor="rm")
        end = max(middle, high) + 6
        draw.text((end, y + 11), f"{row.ratio:.2f}", fill=INK, font=font, anchor="lm")
    one = LABELS + scale
    draw.line((one, top + HEAD, one, top + HEAD + LINE * len(rows)), fill=RED, width=1)
