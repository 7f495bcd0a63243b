"""bench/papers/page.py, chart.py and jobs.py: what is reported, drawn and shown meanwhile."""

import io
import xml.etree.ElementTree as ET

import pytest

from bench.papers import page
from bench.papers.chart import curves, differences
from bench.papers.jobs import Job, run_all
from bench.papers.page import Section
from bench.papers.protocol import FAMILY
from bench.papers.scores import Comparison, compared

CLEAR = compared("bpr - vanilla", "accuracy", [2, 3, 4, 5, 6, 7, 8, 9], [1] * 8, FAMILY[0])
NULL = Comparison("vmoe_k1 - dense", "accuracy", (1.0, -1.0) * 4, FAMILY[1])
SAME = Comparison("bpr - vanilla, C = 2", "accuracy", (0.01, -0.02) * 4)
SECTIONS = {
    "bpr": Section("It is better", [["C", "accuracy"], ["1", "80.0"]], [CLEAR, SAME], 0),
    "dense": Section("So is it", [["arm"]], [NULL], 3),
}


def test_holm_is_over_the_whole_family():
    assert page.corrected([CLEAR, NULL])[FAMILY[0]] == 2 / 256 * len(FAMILY)
    assert page.corrected([])[FAMILY[0]] == 1.0


def test_the_text_says_what_shows_and_what_does_not():
    text = page.text(SECTIONS)
    assert f"Primary, {FAMILY[0]}: +4.50 points, p = 0.0469 after Holm: **a difference is" in text
    assert f"Primary, {FAMILY[1]}: +0.00 points, p = 1.0000 after Holm: **no difference" in text
    assert "within 0.1 points: p = 0.0039 (two one-sided tests): equivalent" in text
    assert "**Not finished: 3 jobs have not been run.**" in text
    assert "| bpr - vanilla | accuracy points | +4.50 | +" in text
    assert "(95.3%)" in text
    assert "### dense: So is it" in text


def test_the_page_keeps_what_is_around_the_results(tmp_path):
    path = tmp_path / "papers.md"
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    page.write(path, SECTIONS)
    written = path.read_text(encoding="utf-8")
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert (tmp_path / "papers" / "bpr-accuracy.svg").is_file()
    page.write(path, SECTIONS)
    assert path.read_text(encoding="utf-8") == written


def test_a_page_without_marks_is_refused(tmp_path):
    path = tmp_path / "papers.md"
    path.write_text("text", encoding="utf-8")
    with pytest.raises(ValueError, match=r"--page: .* has no <!-- results: begin -->"):
        page.check(path)


def test_dots_stand_on_one_scale():
    svg = ET.fromstring(differences([Comparison("a < b", "accuracy", (0.0, 1.0, 2.0))], "title"))
    name = "{http://www.w3.org/2000/svg}"
    seeds = [float(c.get("cx")) for c in svg.iter(f"{name}circle") if c.get("class") == "seed"]
    assert seeds[1] - seeds[0] == pytest.approx(seeds[2] - seeds[1], abs=0.2)
    zero = next(line for line in svg.iter(f"{name}line") if line.get("class") == "zero")
    assert float(zero.get("x1")) == pytest.approx(seeds[0], abs=0.1)
    assert "a < b" in [t.text for t in svg.iter(f"{name}text")]


def test_curves_rise_where_their_values_do():
    lines = {"bpr": [(0.1, 70.0), (2.0, 80.0)], "vanilla": [(0.1, 60.0), (2.0, 80.0)]}
    name = "{http://www.w3.org/2000/svg}"
    first, second = ET.fromstring(curves(lines, "title")).iter(f"{name}polyline")
    start, end = (tuple(map(float, p.split(","))) for p in first.get("points").split())
    assert start[0] < end[0]
    assert start[1] > end[1]  # y goes down
    lower, same = second.get("points").split()
    assert float(lower.split(",")[1]) > start[1]
    assert same == first.get("points").split()[1]


def test_jobs_show_how_long_and_stop_at_ctrl_c():
    done, out = [], io.StringIO()

    def good(report):
        report("half", 0.5)
        done.append(1)

    def stopped(report):
        raise KeyboardInterrupt

    jobs = [Job("first", 2.0, good), Job("second", 1.0, stopped), Job("third", 1.0, good)]
    assert run_all(jobs, out) is False
    assert done == [1]
    shown = out.getvalue()
    assert "[1/3] first" in shown
    assert "half  about 0 min left" in shown
    assert "interrupted" in shown
    assert run_all(jobs[:1], io.StringIO()) is True
