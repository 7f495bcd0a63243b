"""NumPy archives: written and read, bfloat16 and all; damaged and hostile ones are refused."""

import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vmoe.weights.hostile import damaged, shapes_or_refusal
from vmoe.errors import UserError
from vmoe.weights import npz
from vmoe.weights.leaf import leaf_of

ARRAYS = {
    "Transformer/encoderblock_0/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.linspace(0, 1, 5).astype(ml_dtypes.bfloat16),
    "step": np.array(3),
    "none": np.zeros((0, 3), np.bool_),
}


def same(leaves, arrays):
    assert leaves.keys() == arrays.keys()
    for path, array in arrays.items():
        read = leaves[path].read()
        assert (read.dtype, read.shape, read.flags.writeable) == (array.dtype, array.shape, True)
        assert np.array_equal(read, array)


def test_what_is_written_is_read(tmp_path):
    npz.write(tmp_path / "a.npz", {path: leaf_of(array) for path, array in ARRAYS.items()})
    same(npz.read(tmp_path / "a.npz"), ARRAYS)
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["turned"], ARRAYS["turned"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
    arrays = {path: array for path, array in ARRAYS.items() if path != "half"}
    big_endian = {"big": np.arange(3, dtype=">f4")}
    save(tmp_path / "a.npz", **arrays, **big_endian)
    same(npz.read(tmp_path / "a.npz"), arrays | {"big": np.arange(3, dtype=np.float32)})


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/") + ".npy", data)
    return content.getvalue()


F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    "content, message",
    [
        (archive(a=npy(F4 % "10**9,")), "no archive of arrays"),
        (archive(a=npy(F4 % "1000000000,")), "'a.npy' has 0 bytes for float32"),
        (archive(a=npy(F4 % "-1,")), "is no shape"),
        (archive(a=npy(F4 % "2,", b"1234567")), "has 7 bytes for float32"),
        (archive(a=npy((F4 % "1,").replace("<f4", "|O"), b"12345678")), "dtype object is none of"),
        (archive(a=npy((F4 % "1,").replace("<f4", "<U1"), b"1234")), "dtype <U1 is none of"),
        (archive(a=npy("__import__('os').system('true')")), "no archive of arrays"),
        (archive(a=npy("(" * 5000)), "no archive of arrays"),
        (archive(a=bytes(10**8)), "would unpack to more than"),
        (archive(a=npy(F4 % "1,", b"1234"), a__b=npy(F4 % "1,", b"1234")), "through another array"),
        (archive(**{"..__a": npy(F4 % "1,", b"1234")}), "is no path of names"),
        (archive(__a=npy(F4 % "1,", b"1234")), "is no path of names"),
        (archive(**{"a__" * 9000: npy(F4 % "1,", b"1234")}), "has 18000 characters"),
        (b"not a zip file", "no archive of arrays"),
        (b"", "no archive of arrays"),
    ],
)  # fmt: skip
def test_a_hostile_archive_is_refused(tmp_path, content, message):
    file = tmp_path / "a.npz"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        npz.read(file)
    assert shapes_or_refusal(lambda: npz.read(file), file) is None


@given(st.data())
def test_damage_is_refused_or_changes_nothing(tmp_path_factory, data):
    """The archive has a checksum of each array."""
    file = tmp_path_factory.mktemp("damaged") / "a.npz"
    arrays = {"a": np.arange(60.0).reshape(5, 12), "b": np.ones(3, np.int8)}
    np.savez_compressed(file, **arrays)
    sound = file.read_bytes()
    for _ in range(10):
        file.write_bytes(data.draw(damaged(sound)))
        if shapes_or_refusal(lambda: npz.read(file), file) is not None:
            same(npz.read(file), arrays)
