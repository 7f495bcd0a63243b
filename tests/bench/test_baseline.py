"""bench/baseline.py: slower beyond the noise is reported; a file that is no result is refused."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import baseline
from bench.__main__ import main
from bench.report import Row


def row(ratio: float, spread: float = 0.02) -> Row:
    return Row("auto", 1.0, ratio, ratio - spread, ratio + spread, 0.1, None)


def earlier(ratio: float) -> dict:
    return {"A": [asdict(row(ratio))]}


@pytest.mark.parametrize(
    "before, now, count",
    [
        (1.0, row(1.05), 0),
        (1.0, row(1.2), 1),
        (1.2, row(1.0), 0),
        (1.0, row(1.2, spread=0.3), 0),  # the quartiles overlap
    ],
)
def test_what_counts_as_a_regression(before: float, now: Row, count: int, capsys) -> None:
    found = {"A": [now], "new": [row(9.0)]}
    assert len(baseline.regressions(earlier(before), found)) == count
    assert baseline.report(earlier(before), found) == (1 if count else 0)
    assert f"{count} regressions in the 1 cells" in capsys.readouterr().out


def test_it_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps({"results": earlier(1.5)}))
    assert baseline.read(path) == earlier(1.5)
    assert baseline.read(None) == {}


@pytest.mark.parametrize("text", ["not json", "[]", '{"results": {"A": [{"name": "x"}]}}'])
def test_a_file_that_is_no_result_is_named(text: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    assert main(["layer", "--quick", f"--baseline={path}"]) == 2
    assert f"{path} is no result of python -m bench; fix" in capsys.readouterr().err
