"""A run on eight devices, resumed on a mesh of four, has the losses of a run on one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from tests.moegen.sharded import FLAGS
from tests.vmoe.sharded import BEFORE, STEPS
from tests.vmoe.tiny import CONFIG
from vmoe.errors import UserError
from vmoe.sharding import current_mesh, make_mesh, on_mesh, place_batch, state_places
from vmoe.state import init_state

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
"""float32, summed in another order, five steps on."""


def test_the_losses_of_every_step_are_those_of_one_device(tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.vmoe.sharded", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": FLAGS}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    assert f"resumed {tmp_path}/many at step {BEFORE}" in found["told"]
    steps = {(one["step"], one["kind"]): one for one in found["many"]}
    assert [one["step"] for one in found["one"] if one["kind"] == "train"] == list(
        range(1, STEPS + 1)
    )
    for one in found["one"]:
        many = steps[one["step"], one["kind"]]
        names = one.keys() - {"images_per_second", "kind"}
        for name in names:  # a number, or a list of them
            wanted = pytest.approx(one[name], rel=TOLERANCE, abs=TOLERANCE)
            assert many[name] == wanted, (one["step"], name)


def test_experts_and_their_moments_are_split_and_nothing_else():
    mesh = jax.make_mesh((1, 1), ("expert", "model"))
    state = init_state(CONFIG, (8, 8, 1))
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
