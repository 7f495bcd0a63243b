"""Reader of the released V-MoE system's checkpoints: P.index and P.data-?????-of-?????.

A data file is a msgpack map from array numbers to the parts of the array that it holds: a part is
its entries in C order, cut into chunks, and its slice of the whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from vmoe.errors import UserError
from vmoe.weights.leaf import Leaf, Leaves, dtype_of, malformed, unreadable
from vmoe.weights.sharded_index import (
    SLICES,
    Entry,
    Slices,
    read_index,
    read_slices,
    unpack,
    volume,
)

MARK = "__msgpack_array_chunk_a87ca2__"
CHUNK = 1
MAX_BUFFER = 2**31 - 1
"""The most that msgpack can hold of one chunk; memory is taken for bytes that are there only."""
READ_AT_ONCE = 2**20


def prefix_of(path: Path) -> Path | None:
    """The prefix P of a checkpoint, given P, P.index or a data file; None if there is no index."""
    name = path.name.removesuffix(".index")
    head, _, tail = name.rpartition(".data-")
    if head and tail.replace("-of-", "").isdecimal():
        name = head
    prefix = path.with_name(name) if name else None
    return prefix if prefix and index_file(prefix).is_file() else None


def index_file(prefix: Path) -> Path:
    """The index of the checkpoint with a prefix."""
    return prefix.with_name(f"{prefix.name}.index")


def data_file(prefix: Path, shard: int, count: int) -> Path:
    """One of the data files of the checkpoint with a prefix."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{count:05d}")


def read(prefix: Path) -> Leaves:
    """The arrays of a checkpoint; its data files are read array by array, when asked for.

    Before any array is allocated, the declared sizes are held against those of the files.

    Raises:
      UserError: if a file is missing or malformed, naming it and what is wrong; a leaf's `read`
        raises it, too.
    """
    index = read_index(index_file(prefix))
    needed = sorted({shard for entry in index.entries for _, shard in entry.parts})
    files = {shard: data_file(prefix, shard, index.shard_count) for shard in needed}
    there = sum(_file_size(file) for file in files.values())
    declared = sum(entry.nbytes for entry in index.entries)
    if declared > there:
        raise malformed(
            index_file(prefix),
            f"it declares arrays of {declared} bytes, and the data files have {there}",
        )
    arrays = len(index.entries)
    return {
        entry.path: Leaf(entry.shape, entry.dtype, partial(_read_array, entry, arrays, files))
        for entry in index.entries
    }


def _file_size(file: Path) -> int:
    try:
        if not file.is_file():  # a pipe would never end
            raise malformed(file, "the index names it, and there is no such file")
        return file.stat().st_size
    except OSError as error:
        raise unreadable(file, error) from None


def _read_array(entry: Entry, arrays: int, files: dict[int, Path]) -> np.ndarray:
    array = np.empty(entry.shape, entry.dtype)
    # One bit of bookkeeping per entry finds overlaps; the slices' volumes add up already.
    filled = np.zeros(entry.shape, np.bool_) if len(entry.parts) > 1 else None
    for shard, wanted in _by_shard(entry).items():
        file = files[shard]
        with _reading(file) as opened:
            for part, values in _read_parts(opened, file, entry, wanted, arrays):
                where = (*(slice(*bounds) for bounds in part), ...)
                if filled is not None:
                    if filled[where].any():
                        raise malformed(file, f"slices of {entry.path} overlap")
                    filled[where] = True
                array[where] = values.reshape(array[where].shape)
    return array


def _by_shard(entry: Entry) -> dict[int, set[Slices]]:
    shards: dict[int, set[Slices]] = {}
    for part, shard in entry.parts:
        shards.setdefault(shard, set()).add(part)
    return shards


def _read_parts(
    opened: BinaryIO, file: Path, entry: Entry, wanted: set[Slices], arrays: int
) -> Iterator[tuple[Slices, np.ndarray]]:
    """The wanted parts of an array in one data file, each with its values, flat."""
    status = file.stat()
    offset = _offsets(file, arrays, status.st_size, status.st_mtime_ns).get(str(entry.number))
    if offset is None:
        raise malformed(file, f"array {entry.number}, {entry.path}, is not in it")
    opened.seek(offset)
    unpacker = _unpacker(opened)
    missing = set(wanted)
    for _ in range(unpacker.read_array_header()):
        if not missing or unpacker.read_array_header() != 2:
            raise malformed(file, f"{entry.path} is not as many parts (chunks, slices) as named")
        values = _read_chunks(unpacker, file, entry, max(map(volume, missing)))
        part = read_slices(_ext(unpacker, SLICES, file), file)
        if part not in missing or values.size != volume(part):
            raise malformed(file, f"a part of {entry.path} is not one that the index names")
        missing.remove(part)
        yield part, values
    if missing:
        raise malformed(file, f"slices of {entry.path} are missing")


def _read_chunks(unpacker: Any, file: Path, entry: Entry, most: int) -> np.ndarray:
    """The values of one part, flat, put together from its chunks; `most` entries at most."""
    values, size = np.empty(most, entry.dtype), 0
    for _ in range(unpacker.read_array_header()):
        chunk = _chunk(_ext(unpacker, CHUNK, file), entry, file)
        if size + chunk.size > most:
            raise malformed(file, f"a part of {entry.path} is longer than its slice")
        values[size : size + chunk.size] = chunk
        size += chunk.size
    return values[:size]


def _chunk(data: bytes, entry: Entry, file: Path) -> np.ndarray:
    match unpack(data, file):
        case [[int(size)], str(name), bytes(values)]:
            dtype = dtype_of(name, file)
        case _:
            raise malformed(file, f"a chunk of {entry.path} is no flat array")
    if dtype != entry.dtype or len(values) != size * dtype.itemsize:
        has = f"{len(values)} bytes of {name}, not {size} entries of {entry.dtype}"
        raise malformed(file, f"a chunk of {entry.path} has {has}")
    return np.frombuffer(values, dtype)


@cache
def _offsets(file: Path, arrays: int, size: int, modified: int) -> dict[str, int]:
    """Where each array's value begins in a data file of that size and time; read through once.

    It holds at most so many arrays.
    """
    found: dict[str, int] = {}
    with _reading(file) as opened:
        unpacker = _unpacker(opened)
        count = unpacker.read_map_header()
        if count > arrays + 1:
            raise malformed(file, f"it has {count} entries, for {arrays} arrays and a mark")
        for _ in range(count):
            key = unpacker.unpack()
            if not isinstance(key, str) or key in found:
                raise malformed(file, f"{str(key)[:40]!r} is no array number, or is there twice")
            found[key] = unpacker.tell()
            unpacker.skip()
        if unpacker.tell() != size:
            raise malformed(file, "there is more in it than its arrays")
    if MARK not in found:
        raise malformed(file, "it is not marked as a data file")
    return found


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[BinaryIO]:
    """Opens a data file; what msgpack finds wrong in it is our error."""
    try:
        with file.open("rb") as opened:
            yield opened
    except OSError as error:
        raise unreadable(file, error) from None
    except msgpack.OutOfData:
        raise malformed(file, "it ends too early") from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise malformed(file, f"it is not msgpack as it should be ({reason})") from None


def _unpacker(opened: BinaryIO) -> Any:
    """Yields scalars and extensions; containers only where `read_array_header` asks for one.

    So a length that a file declares allocates nothing, and depth does not recurse.
    """
    return msgpack.Unpacker(
        opened, ext_hook=msgpack.ExtType, max_array_len=0, max_map_len=0,
        max_buffer_size=MAX_BUFFER, read_size=READ_AT_ONCE,
    )  # fmt: skip


def _ext(unpacker: Any, code: int, file: Path) -> bytes:
    value = unpacker.unpack()
    if not isinstance(value, msgpack.ExtType) or value.code != code:
        raise malformed(file, f"there is no extension of type {code} where one belongs")
    return value.data
