"""Safetensors: written and read; damaged and hostile files are refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.vmoe.weights.hostile import damaged, shapes_or_refusal
from tests.vmoe.weights.test_npz import ARRAYS, same
from vmoe.errors import UserError
from vmoe.weights import safetensors
from vmoe.weights.leaf import leaf_of


def test_what_is_written_is_read(tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.write(file, {path: leaf_of(array) for path, array in ARRAYS.items()})
    same(safetensors.read(file), ARRAYS)
    assert np.array_equal(load_file(file)["turned"], ARRAYS["turned"])


def content(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "data",
    [
        content({"a": tensor([10**12], 4 * 10**12)}),
        content({"a": tensor([2**40, 2**40], 4)}, bytes(4)),
        content({"a": tensor([2], 4)}, bytes(4)),
        content({"a": tensor([1], 4)}, bytes(8)),
        content({"a": tensor([1], 4), "b": tensor([1], 4)}, bytes(4)),
        content({"a": tensor([4], 4, "F8_E4M3")}, bytes(4)),
        content({"../a": tensor([1], 4)}, bytes(4)),
        content(b'{"a":' * 100_000),
        content(b"[" * 100_000),
        (2**62).to_bytes(8, "little"),
        b"",
    ],
)
def test_a_hostile_file_is_refused(tmp_path, data):
    file = tmp_path / "a.safetensors"
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.safetensors is malformed"):
        safetensors.read(file)
    assert shapes_or_refusal(lambda: safetensors.read(file), file) is None


@given(st.data())
def test_damage_is_refused_or_changes_no_array(tmp_path_factory, data):
    """The header holds no checksum: a changed digit may make another shape of the same size."""
    file = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    arrays = {"a": np.arange(60.0).reshape(5, 12), "b": np.ones(3, np.int8)}
    safetensors.write(file, {path: leaf_of(array) for path, array in arrays.items()})
    sound = file.read_bytes()
    for _ in range(10):
        file.write_bytes(data.draw(damaged(sound)))
        shapes = shapes_or_refusal(lambda: safetensors.read(file), file)
        assert shapes is None or len(shapes) in (1, 2)
