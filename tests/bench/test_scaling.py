"""Weak scaling: a table of plans, each made once; what cannot be is one line."""

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.scaling import SLICES
from moegen.plan import topology


def test_every_slice_has_its_number_of_devices() -> None:
    for family, slices in SLICES.items():
        for devices, sizes in slices.items():
            assert topology(f"{family}:{sizes}").devices == devices


def test_the_table_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["scaling", f"--folder={tmp_path}", "--models=V-MoE-S/32", "--devices=1,8"]
    assert main(command) == 0
    first = capsys.readouterr()
    assert [line.split(" | ")[1] for line in first.out.splitlines()[2:]] == ["1", "8"]
    assert "V-MoE-S/32 on 8" in first.err
    assert main(command) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (first.out, "")


def test_a_slice_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scaling", f"--folder={tmp_path}", "--devices=3"]) == 2
    assert "--devices=3; fix: some of 1, 2, 4" in capsys.readouterr().err
