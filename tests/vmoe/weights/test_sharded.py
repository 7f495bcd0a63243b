"""The released system's checkpoints: recorded ones, written ones, damaged and hostile ones."""

import shutil
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vmoe.vectors import DATA, load
from tests.vmoe.weights.hostile import damaged, shapes_or_refusal
from vmoe.errors import UserError
from vmoe.weights import sharded
from vmoe.weights.leaf import leaf_of
from vmoe.weights.sharded_index import MAX_INDEX_BYTES, read_index
from vmoe.weights.sharded_write import write

RECORDED = DATA / "g_checkpoints"
VARIANTS = ("one_shard", "three_shards")
THREE = RECORDED / "three_shards" / "ckpt_5"


def copy(variant: str, folder: Path) -> Path:
    shutil.copytree(RECORDED / variant, folder, dirs_exist_ok=True)
    return folder / "ckpt_5"


@pytest.mark.parametrize("variant", VARIANTS)
def test_recorded_checkpoint(variant):
    expected = load("g_checkpoint_contents")
    leaves = sharded.read(RECORDED / variant / "ckpt_5")
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        array = leaf.read()
        assert array.dtype.name == ("bfloat16" if path == "bf16" else expected[path].dtype.name)
        np.testing.assert_array_equal(array.astype(expected[path].dtype), expected[path])


@pytest.mark.parametrize("name", ["ckpt_5", "ckpt_5.index", "ckpt_5.data-00001-of-00003"])
def test_any_of_its_names_will_do(name):
    assert sharded.prefix_of(THREE.with_name(name)) == THREE
    assert sharded.prefix_of(THREE.with_name(name.replace("5", "6"))) is None


ARRAYS = {
    "params/b/kernel": np.arange(60, dtype=np.float32).reshape(3, 4, 5),
    "params/a/kernel": np.arange(6, dtype=np.int8).reshape(2, 3).T,
    "params/10": np.ones(3, np.bool_),
    "params/2": np.zeros((0, 4), np.float16),
    "step": np.array(7, np.int32),
}


@pytest.mark.parametrize("shards, chunk_bytes", [(1, 2**30), (3, 16), (7, 1)])
def test_what_is_written_is_read(tmp_path, shards, chunk_bytes):
    write(tmp_path / "P", {p: leaf_of(a) for p, a in ARRAYS.items()}, shards, chunk_bytes)
    leaves = sharded.read(tmp_path / "P")
    for path, array in ARRAYS.items():
        read = leaves[path].read()
        assert (read.dtype, read.flags.writeable) == (array.dtype, True)
        np.testing.assert_array_equal(read, array)
    assert len(list(tmp_path.iterdir())) == shards + 1


def test_a_recorded_checkpoint_is_written_as_it_was(tmp_path):
    write(tmp_path / "ckpt_5", sharded.read(RECORDED / "one_shard" / "ckpt_5"))
    name = "ckpt_5.data-00000-of-00001"
    assert (tmp_path / name).read_bytes() == (RECORDED / "one_shard" / name).read_bytes()
    ours, theirs = (read_index(f / "ckpt_5.index") for f in (tmp_path, RECORDED / "one_shard"))
    assert ours == theirs


def test_what_is_there_is_not_written_over(tmp_path):
    (tmp_path / "P.index").write_text("mine")
    with pytest.raises(UserError, match=r"P\.index is there already"):
        write(tmp_path / "P", {})
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def slices(*bounds: tuple[int, int]) -> bytes:
    return msgpack.packb([msgpack.packb((*b, None)) for b in bounds])


def info(shape, parts, shards, dtype: str = "float32") -> msgpack.ExtType:
    array = msgpack.packb((shape, dtype, False, {}))
    return msgpack.ExtType(8, msgpack.packb((array, parts, shards)))


def part(values: np.ndarray, where: bytes) -> list:
    chunk = msgpack.packb(((values.size,), values.dtype.name, values.tobytes()))
    return [[msgpack.ExtType(1, chunk)], msgpack.ExtType(6, where)]


LEFT, RIGHT = slices((0, 2), (0, 1)), slices((0, 2), (1, 3))
HALVES = {"w": info((2, 3), [LEFT, RIGHT], [0, 1])}
WHOLE = np.arange(6, dtype=np.float32).reshape(2, 3)
MARK = {sharded.MARK: True}


def write_by_hand(folder: Path, index, *shards, count: int | None = None, **more) -> Path:
    root = {"shard_count": len(shards) if count is None else count, "index": index, **more}
    (folder / "P.index").write_bytes(msgpack.packb(root))
    for number, content in enumerate(shards):
        sharded.data_file(folder / "P", number, len(shards)).write_bytes(msgpack.packb(content))
    return folder / "P"


def test_an_array_in_slices_is_put_together(tmp_path):
    data = ({**MARK, "0": [part(WHOLE[:, :1], LEFT)]}, {**MARK, "0": [part(WHOLE[:, 1:], RIGHT)]})
    leaves = sharded.read(write_by_hand(tmp_path, HALVES, *data))  # no version: an old one
    np.testing.assert_array_equal(leaves["w"].read(), WHOLE)


ONE = {"w": info((4,), [slices((0, 4))], [0])}
FOUR = np.arange(4, dtype=np.float32)
GOOD = {**MARK, "0": [part(FOUR, slices((0, 4)))]}


def deep(levels: int) -> dict:
    tree = {"w": ONE["w"]}
    for _ in range(levels):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize(
    "index, shards, message",
    [
        ({"w": info((10**12,), [slices((0, 10**12))], [0])}, [GOOD], "declares arrays of 40000"),
        ({"w": info((2**63, 2**63), [slices((0, 2**63))], [0])}, [GOOD], "is too large"),
        ({"w": info((1,) * 40, [slices()], [0])}, [GOOD], "is too large"),
        ({"w": info((-4,), [slices((0, 4))], [0])}, [GOOD], "is no shape"),
        ({"w": info((4,), [slices((0, 4))], [0], "object")}, [GOOD], "dtype 'object' is none"),
        ({"w": info((4,), [slices((0, 4))], [0], "float33")}, [GOOD], "dtype 'float33' is none"),
        ({"w": info((4,), [slices((0, 3))], [0])}, [GOOD], "do not make up its shape"),
        ({"w": info((4,), [slices((0, 5))], [0])}, [GOOD], "outside its shape"),
        ({"w": info((4,), [slices((3, 2))], [0])}, [GOOD], "is no slice"),
        ({"w": info((4,), [slices((0, 2))] * 2, [0, 0])}, [GOOD], "a slice twice"),
        ({"w": info((4,), [slices((0, 4))], [1])}, [GOOD], "beyond the 1 there are"),
        ({"w": info((4,), [slices((0, 4))], [])}, [GOOD], "does not say its shape, slices"),
        ({"w": msgpack.ExtType(7, b"")}, [GOOD], "'w' is no array"),
        ({"w": 3}, [GOOD], "'w' is no array"),
        ({"../w": ONE["w"]}, [GOOD], "is no name of an array"),
        ({"..": ONE["w"]}, [GOOD], "is no name of an array"),
        ({"a" * 2000: ONE["w"]}, [GOOD], "over 1024 characters long"),
        (deep(70), [GOOD], "more than 64 levels deep"),
        ([ONE], [GOOD], "not msgpack as it should be"),
        (ONE, [{"0": GOOD["0"]}], "not marked as a data file"),
        (ONE, [MARK], "array 0, w, is not in it"),
        (ONE, [GOOD | {"1": [], "2": []}], "4 entries, for 1 arrays"),
        (ONE, [[*range(99)]], "not msgpack as it should be"),
        (ONE, [{**MARK, "0": 3}], "not msgpack as it should be"),
        (ONE, [{**MARK, "0": []}], "slices of w are missing"),
        (ONE, [{**MARK, "0": GOOD["0"] * 2}], "not as many parts"),
        (ONE, [{**MARK, "0": [part(FOUR[:3], slices((0, 4)))]}], "not one that the index names"),
        (ONE, [{**MARK, "0": [part(FOUR, slices((0, 3)))]}], "not one that the index names"),
        (ONE, [{**MARK, "0": [part(np.ones(5, np.float32), slices((0, 4)))]}], "is longer"),
        (ONE, [{**MARK, "0": [part(FOUR.astype(np.int32), slices((0, 4)))]}], "16 bytes of int32"),
        (ONE, [{**MARK, "0": [[[msgpack.ExtType(2, b"")], GOOD["0"][0][1]]]}], "type 1"),
        (ONE, [{**MARK, "0": [[GOOD["0"][0][0], msgpack.ExtType(7, b"")]]}], "type 6"),
        ({"w": info((4,), [slices((0, 3)), slices((2, 3))], [0, 0])},
         [{**MARK, "0": [part(FOUR[:3], slices((0, 3))), part(FOUR[:1], slices((2, 3)))]}],
         "slices of w overlap"),
    ],
)  # fmt: skip
def test_a_hostile_checkpoint_is_refused(tmp_path, index, shards, message):
    prefix = write_by_hand(tmp_path, index, *shards)
    with pytest.raises(UserError, match=message):
        [leaf.read() for leaf in sharded.read(prefix).values()]


@pytest.mark.parametrize("level", [b"\x81\xa1a", b"\x91"])
@pytest.mark.parametrize("name", ["P.index", "P.data-00000-of-00001"])
def test_endless_depth_does_not_recurse(tmp_path, name, level):
    index = {"w": ONE["w"], "x": "here" if name == "P.index" else ONE["w"]}
    prefix = write_by_hand(tmp_path, index, {**GOOD, "1": "here"})
    file = tmp_path / name
    file.write_bytes(file.read_bytes().replace(b"\xa4here", level * 100_000 + b"\xc0"))
    with pytest.raises(UserError, match=f"{name} is malformed"):
        sharded.read(prefix)["w"].read()


@pytest.mark.parametrize("header", [b"\xdd\x40\x00\x00\x00", b"\xdf\x40\x00\x00\x00"])
def test_a_declared_length_allocates_nothing(tmp_path, header):
    prefix = write_by_hand(tmp_path, ONE, {**MARK, "0": "here"})
    file = sharded.data_file(prefix, 0, 1)
    file.write_bytes(file.read_bytes().replace(b"\xa4here", header))
    assert shapes_or_refusal(lambda: sharded.read(prefix), file) is None


def test_other_refusals(tmp_path):
    prefix = write_by_hand(tmp_path, ONE, GOOD, version="20990101")
    with pytest.raises(UserError, match="version '20990101', and only 20220622 is known"):
        sharded.read(prefix)
    prefix = write_by_hand(tmp_path, ONE, GOOD, count=10**9)
    with pytest.raises(UserError, match="1000000000 is no number of data files"):
        sharded.read(prefix)
    prefix = write_by_hand(tmp_path, ONE, GOOD, count=2)
    with pytest.raises(UserError, match=r"P\.data-00000-of-00002 is malformed: .* no such file"):
        sharded.read(prefix)
    with (tmp_path / "P.index").open("wb") as file:
        file.truncate(MAX_INDEX_BYTES + 1)
    with pytest.raises(UserError, match="an index has at most"):
        sharded.read(prefix)


def test_more_after_the_end_is_refused(tmp_path):
    prefix = write_by_hand(tmp_path, ONE, GOOD)
    file = sharded.data_file(prefix, 0, 1)
    file.write_bytes(file.read_bytes() + b"\x00")
    with pytest.raises(UserError, match="more in it than its arrays"):
        sharded.read(prefix)["w"].read()


FILES = [file.name for file in sorted(THREE.parent.iterdir())]
SHAPES = shapes_or_refusal(lambda: sharded.read(THREE), THREE)


@given(st.data())
def test_damage_is_refused_or_changes_no_shape(tmp_path_factory, data):
    """The format has no checksum: changed values and names cannot be told, all else is."""
    prefix = copy("three_shards", tmp_path_factory.mktemp("damaged"))
    for _ in range(10):
        name = data.draw(st.sampled_from(FILES))
        file, sound = prefix.with_name(name), (THREE.with_name(name)).read_bytes()
        file.write_bytes(data.draw(damaged(sound)))
        assert shapes_or_refusal(lambda: sharded.read(prefix), file) in (None, SHAPES)
        file.write_bytes(sound)


@given(st.data())
def test_a_file_that_is_cut_off_is_refused(tmp_path_factory, data):
    prefix = copy("three_shards", tmp_path_factory.mktemp("cut"))
    for name in FILES:
        file, sound = prefix.with_name(name), (THREE.with_name(name)).read_bytes()
        file.write_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])
        assert shapes_or_refusal(lambda: sharded.read(prefix), file) is None
        file.write_bytes(sound)
