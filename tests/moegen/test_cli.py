"""The moegen command: what it prints, what it writes, how it refuses."""

import subprocess
import sys

import pytest

from moegen import cli
from moegen.ir.parse import parse
from moegen.passes.pipeline import STAGES

FILE = """
import moegen as mg

@mg.router
def first(x: mg.f32["S D"], w: mg.f32["D E"]):
    weight, expert = mg.top_k(mg.dot(x, w, over="D"), 1, over="E")
    return mg.assign(expert, weight, capacity=4)

@mg.expert
def scale(x: mg.f32["C D"], w: mg.f32["D"]):
    return x * w
"""


@pytest.fixture
def example(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_print_stage_parses_back(capsys):
    assert cli.main(["print", "noisy_top_k", "--stage=trace", "--set", "k=2"]) == 0
    text = capsys.readouterr().out
    assert parse(text).name == "noisy_top_k_mlp"
    assert "K=2" in text


def test_print_shows_every_stage_and_the_choice(capsys):
    assert cli.main(["print", "noisy_top_k"]) == 0
    text = capsys.readouterr().out
    for stage in STAGES:
        assert f"// after {stage}\n" in text
    assert "<- chosen" in text


def test_print_of_functions_in_a_file(example, capsys):
    router, expert = f"{example}:first", f"{example}:scale"
    arguments = ["--expert", expert, "--stage=trace", "--dims=S=4,E=2"]
    assert cli.main(["print", router, *arguments]) == 0
    text = capsys.readouterr().out
    assert text.startswith("moe @first_scale dims(G=2, S=4, D=8, E=2, K=1, C=4)")
    assert "// mine.py:6" in text


def test_emitted_file_runs_on_jax_alone(example, tmp_path, capsys):
    out = tmp_path / "layer.py"
    arguments = [f"{example}:first", "--expert", f"{example}:scale", "-o", str(out)]
    assert cli.main(["emit", *arguments]) == 0
    assert str(out) in capsys.readouterr().err
    check = (
        "import sys, jax, jax.numpy as jnp, layer\n"
        "x = jnp.ones((2, 16, 8)); w = jnp.eye(8, 4); s = jnp.full((4, 8), 3.0)\n"
        "y, = layer.layer(x, w, s)\n"
        "g = jax.grad(lambda s: layer.layer(x, w, s)[0].sum())(s)\n"
        "assert 'moegen' not in sys.modules\n"
        "print(float(y.sum()), float(g.sum()))\n"
    )
    command = [sys.executable, "-c", check]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    # Expert 0 is every token's choice with weight 1, and takes 4 of 16 tokens in each group.
    assert run.stdout.split() == [str(2 * 4 * 8 * 3.0), str(2 * 4 * 8 * 1.0)], run.stderr
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_check_accepts_what_print_wrote(tmp_path, capsys):
    assert cli.main(["print", "noisy_top_k", "--stage=fuse", "--format=slots"]) == 0
    path = tmp_path / "layer.moe"
    path.write_text(capsys.readouterr().out)
    assert cli.main(["check", str(path)]) == 0
    assert "@noisy_top_k_mlp, joint" in capsys.readouterr().out


def test_check_points_at_the_line(tmp_path, capsys):
    path = tmp_path / "broken.moe"
    path.write_text("moe @f dims(S=2) (%x: f32[S]) {\n  %y: f32[S] = exp(%z)\n  return y=%y\n}\n")
    assert cli.main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert "%z is not defined above" in error
    assert "broken.moe:2" in error


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["print", "noisy_topk"], 'no router noisy_topk in moegen.routers (did you mean "noisy'),
        (["print", "nowhere.py:f"], "nowhere.py is not a file"),
        (["print", "noisy_top_k", "--set", "kk=2"], 'no setting kk (did you mean "k"?)'),
        (["print", "noisy_top_k", "--set", "k"], '--set: "k" is not NAME=VALUE'),
        (["print", "noisy_top_k", "--dims", "S=many"], '--dims: "S=many" is not NAME=SIZE'),
        (["print", "noisy_top_k", "--mesh", "data"], '--mesh: "data" is not NAME=SIZE'),
        (["print", "noisy_top_k", "--mesh", "data=0"], "has no devices"),
        (["print", "noisy_top_k", "--overlap=rin"], "overlap='rin'; 1 chunk or more, \"ring\""),
        (["print", "noisy_top_k", "--mesh", "expert=3"], "E=4 has no 3 equal parts"),
        (["print", "noisy_top_k", "--format", "slot"], 'unknown (did you mean "slots"?)'),
        (["print", "noisy_top_k", "--target", "tpu_v9"], 'target "tpu_v9" is unknown'),
        (["print", "noisy_top_k", "--set", "k=9"], "k=9 is more than E=4"),
        (["aot", "--targets=h100,h300"], '"h300" is no target to compile for'),
        (["check", "missing.moe"], "missing.moe: No such file or directory"),
        (["emit", "noisy_top_k", "-o", "/no/such/dir/x.py"], "/no/such/dir/x.py: No such file"),
    ],
)
def test_bad_input_is_said_and_exits_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("moegen: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_unknown_command_exits_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["draw"])
    assert stopped.value.code == 2
    assert "draw" in capsys.readouterr().err
