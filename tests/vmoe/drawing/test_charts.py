"""Charts: numbers stand where they belong, and what is drawn is well-formed."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vmoe.drawing.charts import Line, heat_map, line_chart, ticks
from vmoe.drawing.page import Section, page, table
from vmoe.drawing.patches import expert_colour, image_uri, patch_picture


def places(line: ET.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, p.split(","))) for p in line.get("points").split()]


def test_lines_share_a_scale_and_a_gap_is_a_gap():
    lines = [
        Line("a < b", [(0, 0.0), (5, 0.5), (10, 1.0)]),
        Line("gap", [(0, 1.0), (2, 1.0), (4, math.nan), (6, 0.0), (10, 0.0)], dashed=True),
    ]
    drawing = ET.fromstring(line_chart("y", "x", lines))
    first, left, right = (places(line) for line in drawing.iter("polyline"))
    assert first[1] == pytest.approx(np.mean([first[0], first[2]], axis=0), abs=0.1)
    assert first[0][1] > first[2][1]  # up is more
    assert (left[0], right[-1]) == ((first[0][0], first[2][1]), (first[2][0], first[0][1]))
    assert "a < b" in [text.text for text in drawing.iter("text")]


def test_equal_factors_are_equally_wide():
    line = Line("", [(0.25, 1.0), (0.5, 2.0), (1.0, 3.0)], marks=True)
    drawing = ET.fromstring(line_chart("y", "x", [line], log_x=True))
    (points,) = map(places, drawing.iter("polyline"))
    assert points[1][0] == pytest.approx(np.mean([points[0][0], points[2][0]]), abs=0.1)
    assert len(list(drawing.iter("circle"))) == 3


def test_nothing_to_draw_says_so():
    assert "nothing was recorded" in line_chart("loss", "step", [Line("a", [(1, math.nan)])])


@pytest.mark.parametrize(
    "low, high, wanted",
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 3, [3, 4]), (0.93, 0.99, None), (-1, 0, None)],
)
def test_ticks_are_round_and_enclose(low, high, wanted):
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    if wanted is not None:
        assert found == pytest.approx(wanted)


def test_a_heat_map_has_a_cell_per_number():
    drawing = ET.fromstring(heat_map("m", np.array([[0.0, 2.0], [1.0, 4.0]]), "ab", "xy", most=2.0))
    opacities = [float(cell.get("fill-opacity")) for cell in drawing.iter("rect")]
    assert opacities == [0.0, 1.0, 0.5, 1.0]


def test_a_heat_map_makes_room_for_the_names_of_its_rows():
    drawing = ET.fromstring(heat_map("m", np.ones((2, 1)), ["Ankle boot", "Wire-haired fox"], "x"))
    names = [text for text in drawing.iter("text") if text.get("text-anchor") == "end"]
    assert [name.text for name in names] == ["Ankle boot", "Wire-haired f…"]
    assert all(float(name.get("x")) >= 7 * len(name.text) for name in names)
    assert "Wire-haired fox, x: 1" in {title.text for title in drawing.iter("title")}


def test_patches_are_covered_in_their_places():
    uri = image_uri(np.zeros((4, 4, 1), np.float32), -1, 1)
    fills = [[("red", 0.5), ("red", 0.0)], [("blue", 0.0), ("blue", 1.0)]]
    drawing = ET.fromstring(patch_picture(uri, fills, side=20, caption="a & b"))
    found = [(r.get("x"), r.get("y"), r.get("fill")) for r in drawing.iter() if r.get("fill")]
    assert found == [("0.0", "0.0", "red"), ("10.0", "10.0", "blue")]
    assert len({expert_colour(e) for e in range(32)}) == 32


def test_the_page_stands_alone_and_escapes_texts():
    section = Section("a < b", "c & d", (table(["x", "<y>"], [["1", "2"]]),))
    made = page("T & t", "s", {"f": "<v>"}, [section])
    for text in ("T &amp; t", "a &lt; b", "c &amp; d", "<th>&lt;y&gt;</th>", "&lt;v&gt;"):
        assert text in made
    assert "http" not in made
    assert "<script" not in made
