"""bench/suite.py: progress, Ctrl-C, exit codes, and names on the command line."""

import argparse
import json
from pathlib import Path

import pytest

from bench import suite
from bench.report import Row

ROWS = [Row("dense", 2.0, 1.0, 1.0, 1.0, 0.5, 12.0), Row("auto", 3.0, 1.5, 1.2, 1.8, 1.5, None)]


def interrupted(rounds):
    raise KeyboardInterrupt


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    suite.add_arguments(parser, quick="small")
    return parser.parse_args(["--allocator=default", *flags])


def test_each_cell_is_shown_as_it_comes(capsys, monkeypatch):
    monkeypatch.setattr(suite, "handover_ns", lambda: None)
    assert suite.measure_all({"one": lambda rounds: ROWS}, 3) == {"one": ROWS}
    printed = capsys.readouterr()
    assert "[1/1] one" in printed.err
    assert "1.20..1.80" in printed.out


def test_the_yardstick_says_how_far_apart_the_cores_were(monkeypatch):
    found = iter((1.5, 3.44))
    monkeypatch.setattr(suite, "handover_ns", lambda: next(found))
    rows = suite.measure_all({"one": lambda rounds: ROWS}, 3)["one"]
    assert [row.note for row in rows] == ["cores 1.5..3.4 ns apart", ""]


def test_ctrl_c_writes_what_is_done_and_says_so(tmp_path: Path, capsys):
    path = tmp_path / "result.json"
    todo = {"one": lambda rounds: ROWS, "two": interrupted, "three": interrupted}
    assert suite.run("any", arguments(f"--json={path}"), todo) == suite.INTERRUPTED == 130
    assert "interrupted: 1 of 3 cells are done" in capsys.readouterr().err
    assert list(json.loads(path.read_text())["results"]) == ["one"]


def test_a_run_that_ends_returns_0_and_a_slower_one_1(tmp_path: Path):
    path = tmp_path / "earlier.json"
    faster = [ROWS[0], Row("auto", 2.0, 1.0, 0.9, 1.1, 1.5, None)]
    assert suite.run("any", arguments(f"--json={path}"), {"one": lambda rounds: faster}) == 0
    assert suite.run("any", arguments(f"--baseline={path}"), {"one": lambda rounds: ROWS}) == 1


@pytest.mark.parametrize("flag", ["json", "html", "png"])
def test_a_file_that_cannot_be_written_is_refused_first(tmp_path: Path, flag):
    with pytest.raises(ValueError, match=f"--{flag}: .*absent is no folder"):
        suite.run("any", arguments(f"--{flag}={tmp_path}/absent/x"), {"one": interrupted})


def test_an_unknown_name_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="--workloads: 'F' is unknown; fix: use"):
        suite.chosen("workloads", ("A", "B"), "A,F")
