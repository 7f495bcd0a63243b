"""`vmoe plan`: without libtpu the analytic part, with it the compiler's word; one of both fits."""

import json

import pytest

from moegen import plan
from tests.vmoe.plan.test_estimate import SMALL
from vmoe.cli import main
from vmoe.commands import plan as command
from vmoe.plan import compiling

FLAGS = [
    "plan", "--model=V-MoE-S/32", "--topology=v5e:2x2", "--mesh=data=2,expert=2", "--batch=32",
    *SMALL,
]  # fmt: skip
FOUND = {
    "compiled": {
        "memory": {"arguments": 100, "results": 50, "aliased": 50, "temporaries": 10,
                   "code": 1, "peak": 111},
        "flops": 5.0, "bytes": 7.0, "kernels": 0,
        "collectives": [{"kind": "all_to_all", "axes": ["expert"], "devices": 2,
                         "nbytes": 600, "times": 6}],
    },
    "seconds": {"compiling": 3.0},
    "process_bytes": 2**30,
}  # fmt: skip


def planned(monkeypatch, tmp_path, found):
    monkeypatch.setattr(command, "missing", lambda: "")
    monkeypatch.setattr(command, "compile_step", lambda *_: found)
    output = tmp_path / "plan.json"
    assert main([*FLAGS, f"--output={output}"]) == 0
    return json.loads(output.read_text())


def test_without_libtpu_one_line_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(plan, "libtpu_folder", lambda: None)
    assert main(FLAGS) == 0
    out, err = capsys.readouterr()
    assert "no libtpu" in err
    assert "make tpu" in err
    assert "not compiled: all figures are estimated" in out
    assert "fits" in out


def test_the_compilers_figures_take_the_place_of_the_estimates(monkeypatch, tmp_path, capsys):
    found = planned(monkeypatch, tmp_path, FOUND)
    assert found["is_compiled"]
    assert found["hbm"]["peak"] == 111
    assert found["hbm"]["fits"]
    assert found["collectives"] == [
        {"kind": "all_to_all", "axes": ["expert"], "nbytes": 600, "times": 6}
    ]
    assert found["flops"]["xla"] == 5.0
    assert "all-to-all over expert" in capsys.readouterr().out


def test_what_does_not_fit_is_said_by_how_much(monkeypatch, tmp_path, capsys):
    memory = {**FOUND["compiled"]["memory"], "peak": 18 * 2**30}
    compiled = {**FOUND["compiled"], "memory": memory}
    found = planned(monkeypatch, tmp_path, {**FOUND, "compiled": compiled})
    assert not found["hbm"]["fits"]
    assert "DOES NOT FIT: 2.00 GiB too much" in capsys.readouterr().out


def test_the_compilers_refusal_is_told(monkeypatch, tmp_path, capsys):
    refused = "XlaRuntimeError: Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm."
    found = planned(monkeypatch, tmp_path, {"refused": refused, "seconds": {}, "process_bytes": 0})
    assert not found["hbm"]["fits"]
    assert refused in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.skipif(bool(compiling.missing()), reason=compiling.missing() or "libtpu is here")
def test_a_small_step_compiles_and_exchanges_what_the_program_says(tmp_path):
    output = tmp_path / "plan.json"
    assert main([*FLAGS, f"--output={output}"]) == 0
    found = json.loads(output.read_text())
    assert found["is_compiled"], found["compiler"]
    exchanged = [one for one in found["collectives"] if one["kind"] == "all_to_all"]
    # Two forward, two forward again, two backward, of one MoE block.
    assert [(one["axes"], one["times"]) for one in exchanged] == [(["expert"], 6)]
