"""`vmoe report`: one page that is whole, with every part a run has, and figures of its own."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vmoe.cli import main
from vmoe.data import pipeline
from vmoe.evaluate import evaluate
from vmoe.outputs import Outputs
from vmoe.use import report as pages
from vmoe.use.report import calibration, curves, dropped, load_over_time, read_records

LOW = (0.5, 0.25)
"""Each of them is a program."""


@pytest.fixture(scope="module")
def html(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "page.html"
    patch = pytest.MonkeyPatch()
    patch.setattr(pages, "CAPACITIES", (0.5,))  # the sweep has tests of its own
    patch.setattr(pages, "BUDGETS", ())
    patch.setattr(pages, "LOW", LOW)
    assert main(["report", str(workdir), f"--out={out}", "--rounds=1"]) == 0
    patch.undo()
    return out.read_text(encoding="utf-8")


def test_every_part_is_there_and_well_formed(html):
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Training", "Expert load over time", "Experts and classes",
        "Patches dropped at low capacity", "Capacity and budget", "Calibration",
    ]  # fmt: skip
    drawings = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(drawings) == 5 + 1 + 1 + 3 * 6 + 3 + 2
    for drawing in drawings:
        ET.fromstring(drawing)
    assert "<script" not in html
    assert not re.search(r'(?:src|href)="(?!data:)', html)  # nothing is fetched


def test_its_figures_are_the_runs(html, trained):
    _, images = pipeline.load(trained.config.data)
    found = evaluate(trained.config, trained.params, images)
    assert f"<div>{found.accuracy:.2%}<span>test accuracy" in html


def test_load_is_drawn_as_it_was_logged(workdir):
    records = read_records(workdir)
    shares = [r["encoderblock_1/load"] for r in records if r["kind"] == "train"]
    np.testing.assert_allclose(np.sum(shares, axis=1), 1, rtol=1e-5)
    (section,) = load_over_time(records)
    cells = [float(c) for c in re.findall(r'fill-opacity="(.*?)"', section.parts[0])]
    wanted = np.minimum(np.array(shares).T * 2, 1)  # of four experts: 1/4 is half the colour
    np.testing.assert_allclose(np.reshape(cells, (4, -1)), wanted, atol=1e-3)


def test_curves_have_a_point_per_record(workdir):
    (section,) = curves(read_records(workdir))
    training = ET.fromstring(section.parts[0]).find("polyline")
    assert len(training.get("points").split()) == 12


def test_less_capacity_covers_more_patches(trained, monkeypatch):
    monkeypatch.setattr(pages, "LOW", LOW)
    (section,) = dropped(trained, pipeline.load(trained.config.data)[1])
    lost = [part.count('fill-opacity="0.60"') for part in section.parts]
    assert lost[0] == 0
    assert lost[1] <= lost[2] <= 6 * 4
    assert lost[2] > 0


def test_the_calibration_plot_has_the_bins_that_are_used():
    logits = np.log(np.array([[0.95, 0.05], [0.95, 0.05], [0.6, 0.4]], np.float32))
    section = calibration(Outputs(logits[:, None], logits, np.array([0, 1, 0])))
    points = ET.fromstring(section.parts[0]).find("polyline").get("points").split()
    assert len(points) == 2
    assert "calibration error 0.433" in section.text  # (2 * |0.5 - 0.95| + |1 - 0.6|) / 3


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "RUN is missing"),
        (["nowhere"], "nowhere/config.json cannot be read"),
        (["RUN", "--rounds=0"], "--rounds=0 times nothing"),
        (["RUN", "--out=no/where.html"], "no is no folder"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags, message, workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(flag.replace("RUN", str(workdir)) for flag in flags)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
