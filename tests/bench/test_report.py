"""bench/report.py: the table, and the JSON that is whole or absent."""

import json
from pathlib import Path

import pytest

from bench import report
from bench.report import Row

ROWS = [
    Row("dense", 2.0, 1.0, 1.0, 1.0, 0.5, 12.0),
    Row("auto", 3.0, 1.5, 1.25, 1.75, 1.5, None, note="slots"),
]


def test_table_has_a_line_per_row() -> None:
    lines = report.table("forward", ROWS).splitlines()
    assert lines[0] == "forward"
    assert lines[3].split() == ["auto", "3.00", "1.50", "1.25..1.75", "1.5", "slots"]


def test_json_holds_results_and_machine(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    report.write_json(path, "layer", {"k": 2}, {"forward": ROWS})
    content = json.loads(path.read_text())
    assert content["results"]["forward"][1]["ratio"] == 1.5
    assert content["settings"] == {"k": 2}
    assert content["machine"]["platform"] == "cpu"
    assert content["git"] == report.git_state()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_earlier_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("earlier")
    with pytest.raises(TypeError):  # a set is not JSON
        report.write_json(path, "layer", {"k": {1}}, {})
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
