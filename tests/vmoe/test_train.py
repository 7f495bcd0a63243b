"""Training runs: killed, interrupted, damaged, resumed, extended, and stopped by a NaN."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.vmoe.tiny import CONFIG, in_workdir
from vmoe.checkpoint import Checkpoints, damage
from vmoe.data import pipeline
from vmoe.errors import RunError, UserError
from vmoe.metrics import JSONL, read_jsonl
from vmoe.train import train

PROGRAM = """
import sys, time
from pathlib import Path
from dataclasses import replace
from tests.vmoe.tiny import in_workdir
import vmoe.train
from vmoe.train import Log
from vmoe.train import train
from vmoe.data import pipeline

pause = float(sys.argv[2])
add = Log.add
def slow_add(self, step, metrics):  # leaves the test time to send its signal
    add(self, step, metrics)
    self.flush()
    time.sleep(pause)
Log.add = slow_add
outcome = train(in_workdir(Path(sys.argv[1])))
sys.exit(0 if outcome.stopped_by is None else 128 + outcome.stopped_by)
"""


def start(workdir, pause: float) -> subprocess.Popen:
    command = [
        sys.executable,
        "-W",
        "error::RuntimeWarning",
        "-c",
        PROGRAM,
        str(workdir),
        str(pause),
    ]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": os.getcwd()}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def losses(workdir) -> dict[int, tuple[float, float, float]]:
    records = [r for r in read_jsonl(workdir / JSONL) if r["kind"] == "train"]
    steps = [r["step"] for r in records]
    assert steps == sorted(set(steps)), "a step is there twice"
    return {r["step"]: (r["loss"], r["auxiliary_loss"], r["grad_norm"]) for r in records}


def wait_for_step(workdir, step: int, process: subprocess.Popen) -> None:
    for _ in range(3000):
        path = workdir / JSONL
        if path.exists() and any(r["step"] >= step for r in read_jsonl(path)):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(in_workdir(workdir), io.StringIO())
    return losses(workdir)


def test_a_run_learns_and_leaves_its_files(uninterrupted, tmp_path):
    assert list(uninterrupted) == list(range(1, CONFIG.steps + 1))
    outcome = train(in_workdir(tmp_path, steps=4, log_every=2, eval_every=2), out := io.StringIO())
    assert int(outcome.state.step) == 4
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoints", "config.json", "images.json", "metrics.jsonl", "tensorboard"
    }  # fmt: skip
    records = [(r["step"], r["kind"]) for r in read_jsonl(tmp_path / JSONL)]
    assert records == [(2, "train"), (2, "eval"), (4, "train"), (4, "eval")]
    assert re.search(r"step 4/4  \d+ images/s  loss \d\.\d{4}  auxiliary", out.getvalue())


def test_kill_9_then_the_same_losses_bit_for_bit(uninterrupted, tmp_path):
    process = start(tmp_path, pause=0.3)
    wait_for_step(tmp_path, 6, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = max(losses(tmp_path))
    assert 6 <= reached < CONFIG.steps
    assert Checkpoints(tmp_path).steps() == [4] if reached < 8 else [4, 8]

    process = start(tmp_path, pause=0.0)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "resumed" in out
    assert losses(tmp_path) == uninterrupted


def test_ctrl_c_saves_and_says_how_to_go_on(uninterrupted, tmp_path):
    process = start(tmp_path, pause=0.3)
    wait_for_step(tmp_path, 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in err
    (stopped,) = re.findall(r"stopped at step (\d+), saved; the same command goes on", out)
    assert Checkpoints(tmp_path).steps()[-1] == int(stopped) == max(losses(tmp_path))
    train(in_workdir(tmp_path), io.StringIO())
    assert losses(tmp_path) == uninterrupted


def test_a_truncated_checkpoint_is_refused_and_the_one_before_is_used(
    uninterrupted, tmp_path, capsys
):
    train(in_workdir(tmp_path, steps=12), io.StringIO())
    checkpoints = Checkpoints(tmp_path)
    newest = checkpoints.path(12)
    biggest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-1])
    train(in_workdir(tmp_path), out := io.StringIO())
    assert f"{newest} is damaged" in (err := capsys.readouterr().err)
    assert f"refused, using {checkpoints.path(8)}" in err
    assert "resumed" in out.getvalue()
    assert "at step 8" in out.getvalue()
    assert damage(newest) is None
    assert losses(tmp_path) == uninterrupted


def test_a_finished_run_started_again_does_nothing(tmp_path):
    first = train(in_workdir(tmp_path, steps=4), io.StringIO()).state
    records = (tmp_path / JSONL).read_text()
    again = train(in_workdir(tmp_path, steps=4), io.StringIO()).state
    assert (tmp_path / JSONL).read_text() == records
    np.testing.assert_array_equal(first.params["head"]["kernel"], again.params["head"]["kernel"])


def test_a_workdir_with_another_run_is_refused(tmp_path):
    train(in_workdir(tmp_path, steps=4), io.StringIO())
    other = in_workdir(tmp_path, optim=replace(CONFIG.optim, lr=0.5))
    with pytest.raises(UserError, match=r"holds a run with optim\.lr=0\.001, not 0\.5; fix: anoth"):
        train(other, io.StringIO())


def router_of(**changes) -> dict:
    router = replace(CONFIG.model.moe.router, **changes)
    return {"model": replace(CONFIG.model, moe=replace(CONFIG.model.moe, router=router))}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": replace(CONFIG.model, patch_size=3)}, r"patch"),
        ({"model": replace(CONFIG.model, num_classes=9)}, r"num_classes=9 is less than the 10"),
        ({"data": replace(CONFIG.data, name="idx", path="/nowhere")}, r"does not exist; fix"),
        ({"data": replace(CONFIG.data, batch_size=1440)}, r"more than the 1437 training images"),
        ({"steps": 3}, r"warmup_steps=3 leaves nothing of 3 steps"),
        ({"workdir": ""}, r"workdir is not set"),
        (router_of(name="soft", dropless=True), r"dropless=True means nothing to the router"),
        (router_of(name="mixtral", bias_update_rate=0.1), r"bias_update_rate=0.1 means nothing"),
        (router_of(name="nowhere.py:own"), r"moe.router.name: nowhere.py is not a file; fix"),
    ],
)
def test_a_users_mistake_writes_nothing(tmp_path, changes, message):
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=message):
        train(replace(in_workdir(workdir), **changes), io.StringIO())
    assert not workdir.exists()


def test_a_workdir_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written: Not a directory; fix"):
        train(in_workdir(tmp_path / "file" / "run"), io.StringIO())


def test_a_nan_stops_the_run_with_the_step_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    batches = pipeline.training_batches

    class Poisoned:
        """Batch 7 holds an image that is not a number."""

        def __init__(self, *arguments):
            self.inner, self.count = batches(*arguments), 0

        def __next__(self):
            batch, self.count = next(self.inner), self.count + 1
            if self.count == 7:
                batch["images"] = batch["images"] * np.nan
            return batch

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(pipeline, "training_batches", Poisoned)
    wanted = r"step 7: loss nan; not finite first: the activations of embedding; last good check"
    with pytest.raises(RunError, match=wanted + r"point: .*step_00000004; fix"):
        train(in_workdir(tmp_path, log_every=6), io.StringIO())
    assert Checkpoints(tmp_path).steps() == [4]
    assert damage(Checkpoints(tmp_path).path(4)) is None
    assert max(losses(tmp_path)) == 6
