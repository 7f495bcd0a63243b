"""bench/picture.py: bars of a PNG."""

import sys
from pathlib import Path

import pytest

from bench.picture import BLUE, GREY, HEAD, WIDTH, check_pillow, write_png
from bench.plot import LABELS, LINE
from bench.report import Row

ROWS = [
    Row("dense", 2.0, 1.0, 1.0, 1.0, 0.5, 12.0),
    Row("auto", 3.0, 1.5, 1.5, 1.5, 1.5, None),
]


def test_bars_are_in_proportion(tmp_path: Path):
    image_of = pytest.importorskip("PIL.Image", reason="Pillow draws the picture")
    path = tmp_path / "bars.png"
    write_png(path, {"A": ROWS, "B": ROWS})
    with image_of.open(path) as image:
        assert image.size == (WIDTH, 2 * (HEAD + 2 * LINE) + LINE)
        for cell in range(2):
            found = []
            for number, colour in enumerate((GREY, BLUE)):
                y = cell * (HEAD + 2 * LINE) + HEAD + LINE * number + 4
                row = [image.getpixel((x, y)) for x in range(LABELS, WIDTH)]
                found.append(row.count(tuple(bytes.fromhex(colour[1:]))))
            assert found[1] == pytest.approx(1.5 * found[0], abs=4)
    assert list(tmp_path.iterdir()) == [path]


def test_without_pillow_it_says_so_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    check_pillow(None)
    with pytest.raises(ValueError, match="--png: drawing needs Pillow, which is not here; fix: "):
        check_pillow(Path("x.png"))
