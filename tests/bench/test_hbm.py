"""bench/hbm.py: the goal by hand, mistakes as one line, and the layer that is compiled."""

import jax
import pytest

from bench import hbm
from bench.__main__ import main
from bench.tpu_programs import moe_layer
from moegen.tune.tpu_compiler import Compilation

SMALL = {"tokens": 16, "width": 8, "hidden": 32}


def test_the_goal_counts_activations_and_outputs():
    assert hbm.goal(4096, 1024, 4096) == 1.15 * 2 * (8192 * 4096 + 4096 * 1024)


@pytest.mark.parametrize("schedule", hbm.PROGRAMS.values(), ids=hbm.PROGRAMS)
def test_every_program_lowers_for_a_tpu(schedule):
    call, shapes = moe_layer("tpu_v5e", "training", schedule, **SMALL)
    text = jax.jit(call).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    assert ("gathered_dot_tpu" in text) == ("gather" in schedule)
    assert ("grouped_dot_tpu" in text) == ("kernel" not in schedule)


def test_a_line_for_each_program(monkeypatch, capsys):
    def compiled(target, jobs, estimate):
        assert target == "tpu_v5e"
        assert estimate is False
        return (
            Compilation(j.name, hbm=(3000000, 2000000, 1000000), peak=9000000, kernels=2)
            for j in jobs
        )

    monkeypatch.setattr(hbm, "compile_for", compiled)
    assert main(["hbm", "--parts=forward,training"]) == 0
    first, _, head, *lines = capsys.readouterr().out.splitlines()
    assert first == "goal, forward: 86.8 MB at the peak"
    assert head.split() == [
        "part",
        "program",
        "arguments",
        "results",
        "temporary",
        "peak",
        "kernels",
        "kept",
    ]
    assert len(lines) == 3 + 5
    assert lines[0].split() == ["forward", "gathered", "inside", "3.0", "2.0", "1.0", "4.0", "2"]
    assert [line.split()[-1] for line in lines[3:]] == ["176.7", "185.0", "75.8", "75.8", "185.0"]


def test_mistakes_are_one_line(monkeypatch, capsys):
    assert main(["hbm", "--tokens=6"]) == 2
    assert main(["hbm", "--target=tpu-v9"]) == 2
    refused = [Compilation("forward  auto ", "no")]
    monkeypatch.setattr(hbm, "compile_for", lambda *a, **k: iter(refused))
    assert main(["hbm"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "error: --tokens=6; fix: 1 or more, tokens a multiple of 4"
    assert errors[1].startswith("error: --target=tpu-v9; fix: one of tpu_v4")
    assert errors[-1] == "error: forward  auto: no"
