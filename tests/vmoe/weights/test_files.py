"""Any checkpoint by its path: its format, the parts of a training state, and what is none."""

import gc
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vmoe.checkpoint import MANIFEST, TREE, Checkpoints, describe
from vmoe.errors import UserError
from vmoe.state import TrainState
from vmoe.weights import files, run
from vmoe.weights.leaf import flat, leaf_of


@pytest.fixture(scope="module")
def state() -> TrainState:
    block = {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)}
    params = {"Encoder": {"encoderblock_0": block}, "head": {"bias": jnp.zeros(())}}
    moments = (optax.EmptyState(), optax.adam(1e-3).init(params))
    return TrainState(jnp.asarray(3), params, moments, jnp.ones(2, jnp.uint32))


@pytest.fixture(scope="module")
def workdir(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        Checkpoints(folder).save(step, tuple(state), {})
    return folder


def test_a_training_state_has_the_parts_that_are_named():
    assert TrainState._fields == run.FIELDS


def test_a_run(workdir, state):
    found = files.read(workdir)
    assert (found.path, found.format) == (Checkpoints(workdir).path(2), "vmoe run")
    expected = flat(state)
    assert found.leaves.keys() == expected.keys()
    for path, leaf in found.leaves.items():
        read = leaf.read()
        assert (leaf.shape, leaf.dtype) == (expected[path].shape, expected[path].dtype)
        assert isinstance(read, np.ndarray)
        np.testing.assert_array_equal(read, expected[path])
    weights = files.weights(found.leaves)
    assert weights.keys() == flat(state.params).keys()
    assert files.weights(weights) is weights


def test_one_checkpoint_of_a_run_and_a_damaged_one(workdir):
    first = Checkpoints(workdir).path(1)
    assert files.read(first).path == first
    name = next(f for f in first.rglob("*") if f.is_file() and f.stat().st_size > 99)
    name.write_bytes(name.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{first} is damaged"):
        files.read(first)
    gc.collect()  # what orbax leaves behind


def hostile(folder: Path, edit: Callable[[str], str]) -> str:
    """Changes what orbax says of the arrays, and the manifest with it: no checksum tells."""
    file = folder / TREE / "_METADATA"
    file.write_text(edit(file.read_text()))
    (folder / MANIFEST).write_text(json.dumps(describe(folder)))
    return str(folder)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda text: text[:-5], "is malformed"),
        (lambda text: "[" * 5000, "is malformed"),
        (lambda text: "{}", "is malformed|does not hold step"),
    ],
)
def test_a_hostile_run(state, tmp_path, edit, message):
    folder = Checkpoints(tmp_path).save(1, tuple(state), {})
    path = hostile(folder, edit)
    with pytest.raises(UserError, match=message):
        [leaf.read() for leaf in files.read(path).leaves.values()]
    gc.collect()  # what orbax leaves behind


def test_a_run_that_unpacks_to_too_much(state, tmp_path):
    """Zeros take next to nothing in a file, and all their bytes in memory."""
    nothing = {"head": jnp.zeros((5000, 1000))}
    Checkpoints(tmp_path).save(1, tuple(state._replace(params=nothing)), {})
    with pytest.raises(UserError, match="declares arrays of more than 100 times its size"):
        files.read(tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".index"])
def test_every_format_keeps_every_array(workdir, tmp_path, suffix):
    leaves = files.read(workdir).leaves
    files.write(tmp_path / f"a{suffix}", leaves)
    again = files.read(tmp_path / f"a{suffix}").leaves
    assert again.keys() == leaves.keys()
    same = jax.tree.map(
        lambda x, y: x.dtype == y.dtype and np.array_equal(x.read(), y.read()), leaves, again
    )
    assert all(same.values())


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    for path, message in (("notes.txt", "is no checkpoint"), ("no.npz", "does not exist")):
        with pytest.raises(UserError, match=f"{path} {message}; fix: "):
            files.read(tmp_path / path)
    with pytest.raises(UserError, match=r"cannot tell the format of .*a\.bin; fix: end it in"):
        files.write(tmp_path / "a.bin", {"a": leaf_of(np.ones(2))})


def test_a_running_average_comes_before_the_weights_it_is_of():
    leaves = {"params/head/kernel": "raw", "opt_state/6/average/head/kernel": "mean"}
    assert files.weights(leaves) == {"head/kernel": "mean"}
    del leaves["opt_state/6/average/head/kernel"]
    assert files.weights(leaves) == {"head/kernel": "raw"}
