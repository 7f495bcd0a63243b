"""The command: each mistake is one line and exit code 2, with nothing written; help is quick."""

import subprocess
import sys

import pytest

from moegen.errors import LoweringError
from vmoe.cli import COMMANDS, main


@pytest.mark.parametrize("flags", [["--help"], ["-h"], ["train", "--help"]])
def test_help(flags, capsys):
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "usage: vmoe COMMAND" in out
    assert all(f"\n  {command} " in out or f"\n  {command}\n" in out for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vmoe ")


def test_configs(capsys):
    assert main(["configs"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"demo", "fashion_mnist"} <= set(names)
    assert not any(name.startswith("_") for name in names)


def test_no_command(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        (["trian"], "there is no command trian; fix: did you mean train?"),
        (["train"], "--config is missing; fix: --config=FILE"),
        (["train", "--config=no.py"], "config file no.py does not exist"),
        (["train", "--config=demo", "--wokdir=x"], "wokdir"),
        (["train", "--config=demo", "extra"], "'extra' is no flag"),
        (["train", "--config=demo", "--config.optim.lrr=1"], "did you mean optim.lr?"),
        (["train", "--config=demo", "--config.steps=many"], "steps='many' is a str, not a int"),
        (["train", "--config=demo", "--config.data.name=idx", "--config.data.path=nowhere"],
         "apt-get install dataset-fashion-mnist"),
        (["demo", "--config.model.width=30"], "model.width=30 is not a multiple of num_heads=4"),
        (["configs", "--config.steps=1", "extra"], "'extra' is no flag"),
        (["evaluate"], "--workdir is missing; fix: --workdir=DIR"),
        (["evaluate", "--workdir=nowhere", "--k=two"], "--k=two is no number; fix: for example"),
        (["evaluate", "--workdir=nowhere"], "nowhere/config.json cannot be read"),
        (["evaluate", "--workdir=nowhere", "--sets=rooting"], "--sets has rooting; fix: use some"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vmoe: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_what_moegen_cannot_lower_is_one_line(capsys, monkeypatch):
    def run(given):
        raise LoweringError("no exchange of C=3 slots", fix='moe.format="slots"')

    monkeypatch.setattr("vmoe.commands.configs.run", run)
    assert main(["configs"]) == 2
    err = capsys.readouterr().err
    assert err == 'vmoe: error: no exchange of C=3 slots; fix: moe.format="slots"\n'


def test_importing_the_command_imports_no_jax():
    program = "import sys, vmoe.cli; vmoe.cli.main(['--help']); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_demo_then_evaluate(tmp_path, capsys):
    """The whole path, short; evaluate reads back what demo printed."""
    small = [
        "--config.steps=2", "--config.optim.schedule.warmup_steps=1", "--config.model.depth=2",
        "--config.model.moe.layers=(1,)", "--config.model.width=8", "--config.model.patch_size=4",
    ]  # fmt: skip
    assert main(["demo", f"--workdir={tmp_path}/run", *small]) == 0
    shown = capsys.readouterr().out
    for line in ("test accuracy", "tokens dropped", "load per expert, encoderblock_1"):
        assert line in shown
    assert [row.split()[0] for row in shown.splitlines()[-6:-2]] == ["2.00", "1.00", "0.50", "0.25"]
    assert main(["evaluate", f"--workdir={tmp_path}/run"]) == 0
    again = capsys.readouterr().out
    accuracy = [line for line in shown.splitlines() if line.startswith("test accuracy")]
    assert accuracy[0] in again
