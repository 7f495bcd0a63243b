"""A run on two processes, killed and gone on with on one, has the losses of one device."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import pytest

from tests.vmoe import several
from tests.vmoe.sharded import EVERY, MORE
from tests.vmoe.tiny import CONFIG
from vmoe.checkpoint import UNFINISHED, Checkpoints
from vmoe.errors import UserError
from vmoe.processes import LOST, SILENCE
from vmoe.sharding import current_mesh, make_mesh, on_mesh, place_batch, state_places
from vmoe.state import init_state

TOLERANCE = 1e-5
"""float32, summed in another order, five steps on."""


def in_a_save(workdir):
    """Whether a checkpoint is there and the next one is being written."""
    folder = Checkpoints(workdir).folder
    return Checkpoints(workdir).steps() and list(folder.glob(f"{UNFINISHED}*"))


def saved(workdir):
    """Whether a checkpoint is there."""
    return Checkpoints(workdir).steps()


def stopped(workdir, process, number, devices, mesh, when=saved):
    """What is left of a run on two processes with so many devices each; one got a signal.

    Returns:
      The other's exit code, its last line, and how many seconds after the signal it ended.
    """
    processes = several.start(
        workdir, 2, devices, [f"--config.mesh={mesh}", "--config.steps=100000"]
    )
    try:
        several.wait_until(lambda: when(workdir), processes)
        processes[process].send_signal(number)
        before, other = time.monotonic(), 1 - process
        code = processes[other].wait(several.PATIENCE)
    finally:
        several.end(processes)
    last = several.errors(workdir, other).read_text().splitlines()[-1]
    return code, last, time.monotonic() - before


def check_losses(workdir, mesh):
    """Of the two processes until one was stopped, then of one process on a mesh of its own."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.vmoe.sharded", workdir.parent, mesh],
        cwd=several.ROOT, env=several.environment(4), capture_output=True, text=True, check=False,
        timeout=several.PATIENCE,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    saved = found["saved"]
    assert saved % EVERY == 0
    assert f"resumed {workdir} at step {saved}" in found["told"]
    steps = {(one["step"], one["kind"]): one for one in found["many"]}
    assert len(steps) == len(found["many"]) == len(found["one"])
    trained = [one["step"] for one in found["one"] if one["kind"] == "train"]
    assert trained == list(range(1, saved + MORE + 1))
    assert (EVERY, "eval") in steps
    for one in found["one"]:
        many = steps[one["step"], one["kind"]]
        names = one.keys() - {"images_per_second", "kind"}
        for name in names:  # a number, or a list of them
            wanted = pytest.approx(one[name], rel=TOLERANCE, abs=TOLERANCE)
            assert many[name] == wanted, (one["step"], name)


def test_a_killed_process_ends_the_other_and_one_device_goes_on_with_the_same_losses(tmp_path):
    """The one that is killed is the coordinator, whose end JAX answers with an abort."""
    code, last, seconds = stopped(tmp_path / "many", 0, signal.SIGKILL, 1, "(('expert', 2),)")
    assert (code, last) == (1, f"vmoe: error: {LOST}")
    assert seconds < 2 * SILENCE
    check_losses(tmp_path / "many", "{}")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "process, number, when",
    [
        (1, signal.SIGKILL, saved),
        (0, signal.SIGKILL, in_a_save),
        (1, signal.SIGKILL, in_a_save),
        (0, signal.SIGSTOP, saved),
        (1, signal.SIGSTOP, saved),
    ],
)
def test_any_other_end_of_a_process(tmp_path, process, number, when):
    """On an axis that has one process's images apart, and gone on with on another mesh."""
    mesh = "(('expert', 2), ('data', 2))"
    code, last, seconds = stopped(tmp_path / "many", process, number, 2, mesh, when)
    assert (code, last) == (1, f"vmoe: error: {LOST}")
    assert seconds < 3 * SILENCE
    check_losses(tmp_path / "many", '{"fsdp": 2, "model": 2}')


def test_experts_and_their_moments_are_split_and_nothing_else():
    mesh = jax.make_mesh((1, 1), ("expert", "model"))
    state = jax.eval_shape(lambda: init_state(CONFIG, (8, 8, 1)))
    places = jax.tree_util.tree_leaves_with_path(state_places(mesh, state))
    split = {jax.tree_util.keystr(path): place.spec for path, place in places if any(place.spec)}
    assert len(split) == 3 * 4  # weights, and both of Adam's moments
    assert all("'Moe'" in path for path in split)
    kernel = next(s for path, s in split.items() if "'Dense_1'" in path and "'kernel'" in path)
    assert tuple(kernel) == ("expert", "model", None)


def test_a_mesh_that_cannot_be():
    with pytest.raises(UserError, match="needs 64 devices, there are 1"):
        make_mesh((("data", 64),))
    with pytest.raises(UserError, match='mesh="pipe"'):
        replace(CONFIG, mesh=(("pipe", 2),)).validate()
    with pytest.raises(UserError, match="each once, with 1 or more"):
        replace(CONFIG, mesh=(("data", 2), ("data", 2))).validate()
    with pytest.raises(UserError, match=r"batch_size=8 has no 16 equal parts"):
        replace(CONFIG, mesh=(("data", 16),)).validate()


def test_one_device_needs_no_mesh():
    assert make_mesh(()) is None
    assert place_batch(None, {"images": 3}) == {"images": 3}
    with on_mesh(None):
        assert current_mesh() is None
