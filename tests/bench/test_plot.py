"""bench/plot.py: a page that is whole, and bars as long as their ratios."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.plot import BARS, LABELS, MOST, chart, write_html
from bench.report import Row

ROWS = [
    Row("dense", 2.0, 1.0, 1.0, 1.0, 0.5, 12.0),
    Row("auto", 3.0, 1.5, 1.25, 1.75, 1.5, None, note="a < b"),
]


def widths(rows: list[Row]) -> list[float]:
    return [float(r.get("width")) for r in ET.fromstring(chart(rows)).iter("rect")]


def test_bars_are_in_proportion_and_the_line_is_at_one():
    drawing = ET.fromstring(chart(ROWS))
    yardstick, auto = widths(ROWS)
    assert auto == pytest.approx(1.5 * yardstick, abs=0.2)
    one = next(line for line in drawing.iter("line") if line.get("class") == "one")
    assert float(one.get("x1")) == pytest.approx(LABELS + yardstick, abs=0.1)
    assert "1.50" in [text.text for text in drawing.iter("text")]


def test_a_bar_beyond_the_scale_ends_at_its_edge():
    slow = Row("slow", 40.0, 5 * MOST, 4 * MOST, 6 * MOST, 1.0, None)
    assert max(widths([ROWS[0], slow])) == BARS
    assert "20.00" in chart([ROWS[0], slow])


def test_the_page_stands_alone_and_escapes_names(tmp_path: Path):
    path = tmp_path / "page.html"
    write_html(path, "layer", {"rounds": 3}, {"A/<b>": ROWS})
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "rounds 3" in page
    assert "A/&lt;b&gt;" in page
    assert "a &lt; b" in page
    assert "http" not in page  # nothing is fetched
