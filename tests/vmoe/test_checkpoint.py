"""Checkpoints: read back bit for bit; damage found and named; a failed write harms nothing."""

import gc
import json
import resource
import shutil
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe.checkpoint import MANIFEST, UNFINISHED, Checkpoints, damage
from vmoe.errors import RunError, UserError

# Orbax leaves its coroutines behind when a write or a restore fails, and the event loop they belong
# to is closed by the time they are collected. That is all this file excuses; they are collected
# within the test that provoked them, so that no other test can be blamed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_what_orbax_leaves():
    yield
    gc.collect()


POSITION = {"next_index": 7}


def state(seed: int, size: int = 32):
    key = jax.random.key(seed)
    weights = {"head": {"kernel": jax.random.normal(key, (size, size)), "bias": jnp.ones(3)}}
    moments = (jnp.zeros((), jnp.int32), jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights))
    return jnp.asarray(seed, jnp.int32), weights, moments, jax.random.key_data(key)


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


@pytest.fixture
def three(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), POSITION | {"next_index": step})
    return checkpoints


def biggest_file(path):
    return max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_what_is_saved_is_restored(three):
    restored = three.restore(state(0))
    assert (restored.step, restored.data_position) == (30, {"next_index": 30})
    assert restored.refused == []
    assert same(restored.state, state(30))


def test_no_checkpoint_at_all(tmp_path):
    assert Checkpoints(tmp_path / "nothing").restore(state(0)) is None


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 100, 15):
        checkpoints.save(step, state(step, size=2), POSITION)
    assert checkpoints.steps() == [15, 100]


def truncate(path):
    file = biggest_file(path)
    file.write_bytes(file.read_bytes()[:-10])
    return file.name


def flip_a_bit(path):
    file = biggest_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file.name


def lose_a_file(path):
    file = biggest_file(path)
    file.unlink()
    return file.name


def lose_the_manifest(path):
    (path / MANIFEST).unlink()
    return MANIFEST


def halve_the_manifest(path):
    file = path / MANIFEST
    file.write_text(file.read_text()[: file.stat().st_size // 2])
    return MANIFEST


DAMAGES = [truncate, flip_a_bit, lose_a_file, lose_the_manifest, halve_the_manifest]


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(three, harm):
    file = harm(three.path(30))
    restored = three.restore(state(0))
    assert restored.step == 20
    assert same(restored.state, state(20))
    (reason,) = restored.refused
    assert str(three.path(30)) in reason
    assert file in reason


def test_all_damaged_is_an_error_not_a_fresh_start(three):
    for step in three.steps():
        truncate(three.path(step))
    with pytest.raises(UserError, match=r"step_00000030 is damaged .* no sound one before it"):
        three.restore(state(0))


def test_a_refused_checkpoint_is_replaced_when_its_step_comes_again(three):
    truncate(three.path(30))
    three.save(30, state(31), POSITION)
    assert damage(three.path(30)) is None
    assert same(three.restore(state(0)).state, state(31))


def test_a_tree_of_another_model(three):
    with pytest.raises(UserError, match=r"step_00000030 does not fit the config"):
        three.restore(state(0, size=16))


def test_a_killed_write_leaves_nothing_that_counts(three):
    """The temporary folder of a process that died in `save`, with all but the manifest."""
    shutil.copytree(three.path(30), three.folder / f"{UNFINISHED}step_00000040")
    assert three.steps() == [10, 20, 30]
    assert three.restore(state(0)).step == 30
    three.save(50, state(50), POSITION)
    assert not list(three.folder.glob(f"{UNFINISHED}*"))


@contextmanager
def no_room(largest_file: int):
    """The system refuses to write any file past a size, as a full disk does, also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 50, 2000, 100_000])
def test_a_full_disk_leaves_the_earlier_checkpoints(three, room):
    noise = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
    with no_room(room), pytest.raises(RunError, match=r"step_00000040: .*last good.*step_00000030"):
        three.save(40, {"w": noise}, POSITION)
    assert three.steps() == [10, 20, 30]
    assert all(damage(three.path(step)) is None for step in three.steps())
    assert not list(three.folder.glob(f"{UNFINISHED}*"))
    assert three.restore(state(0)).step == 30
    three.save(40, state(40), POSITION)  # and with room again it goes on
    assert three.restore(state(0)).step == 40


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write checkpoint .*: Not a directory; none is bef"):
        Checkpoints(tmp_path / "file").save(1, state(1), POSITION)


def test_the_manifest_names_every_file(three):
    path = three.path(20)
    named = set(json.loads((path / MANIFEST).read_text())["files"])
    there = {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()}
    assert named == there - {MANIFEST}
