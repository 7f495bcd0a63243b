"""The index of a checkpoint of the released V-MoE system: what is where in its data files.

The file is one msgpack map {shard_count, index, version}. A leaf of the nested dict `index` is an
extension (type 8) that holds the array's shape and dtype, its slices, and each slice's data file.
Arrays are numbered in the order of the leaves, with the keys of every dict sorted as strings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from vmoe.weights.leaf import MAX_PATH, dtype_of, malformed, shape_of, unreadable

VERSION = "20220622"
INDEX_INFO, SLICES = 8, 6
MAX_INDEX_BYTES = 8 * 2**20
"""A leaf takes some 150 bytes and 20 for each slice; published models have under 1,000 leaves."""
MAX_DEPTH = 64
MAX_SHARDS = 99_999
"""Five digits, as in the names of the data files."""

Slices = tuple[tuple[int, int], ...]
"""Where a part of an array is in the whole: (start, stop) along each dim."""


class Entry(NamedTuple):
    """An array as the index declares it.

    Attributes:
      number: its id in the data files.
      path: the names down to it, joined by "/".
      shape, dtype: of the whole.
      parts: its slices and the data file of each.
    """

    number: int
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: tuple[tuple[Slices, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Index(NamedTuple):
    """What an index file says.

    Attributes:
      shard_count: the number of data files.
      entries: all arrays, in the order of their numbers.
    """

    shard_count: int
    entries: list[Entry]


def read_index(file: Path) -> Index:
    """Reads an index file; nothing in it is taken on trust.

    Raises:
      UserError: if it cannot be read or is malformed, naming the file and what is wrong.
    """
    try:
        if not file.is_file():
            raise malformed(file, "it is no file")
        if file.stat().st_size > MAX_INDEX_BYTES:
            raise malformed(file, f"an index has at most {MAX_INDEX_BYTES} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    # Arrays occur only inside the extensions, so here a declared length allocates nothing.
    root = unpack(data, file, max_array_len=0)
    if not isinstance(root, dict) or not {"shard_count", "index"} <= root.keys():
        raise malformed(file, "there is no shard_count or no index in it")
    if root.get("version", VERSION) != VERSION:
        version = str(root["version"])[:40]
        raise malformed(file, f"it has version {version!r}, and only {VERSION} is known")
    count = root["shard_count"]
    if type(count) is not int or not 1 <= count <= MAX_SHARDS:
        raise malformed(file, f"{str(count)[:40]} is no number of data files")
    leaves = enumerate(_leaves(root["index"], file))
    return Index(count, [_entry(n, path, data, count, file) for n, (path, data) in leaves])


def unpack(data: bytes, file: Path, *, max_array_len: int = 2**16) -> Any:
    """The msgpack value of some bytes, extensions as msgpack.ExtType.

    Raises:
      UserError: if it is none, or more than one.
    """
    try:
        return msgpack.unpackb(data, ext_hook=msgpack.ExtType, max_array_len=max_array_len)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise malformed(file, f"it is not msgpack as it should be ({_reason(error)})") from None


def read_slices(data: object, file: Path) -> Slices:
    """The slices of a part, from their bytes: one packed (start, stop, step) for each dim."""
    if not isinstance(data, bytes):
        raise malformed(file, "slices are not packed")
    packed = unpack(data, file)
    if not isinstance(packed, list):
        raise malformed(file, "slices are no list")
    bounds: list[tuple[int, int]] = []
    for item in packed:
        given = unpack(item, file) if isinstance(item, bytes) else None
        if not isinstance(given, list) or len(given) != 3 or given[2] not in (None, 1):
            raise malformed(file, "a slice is not (start, stop, no step)")
        start, stop = given[:2]
        if type(start) is not int or type(stop) is not int or not 0 <= start <= stop:
            raise malformed(file, f"{str(given)[:80]} is no slice")
        bounds.append((start, stop))
    return tuple(bounds)


def volume(slices: Slices) -> int:
    """The number of entries of a part."""
    return math.prod(stop - start for start, stop in slices)


def _leaves(tree: object, file: Path) -> Iterator[tuple[str, bytes]]:
    """The packed leaves with their paths, in order; a stack, not recursion, walks down."""
    stack: list[tuple[tuple[str, ...], object]] = [((), tree)]
    while stack:
        names, node = stack.pop()
        if isinstance(node, dict):
            if len(names) >= MAX_DEPTH:
                raise malformed(file, f"its tree is more than {MAX_DEPTH} levels deep")
            for name in sorted(node, key=str, reverse=True):
                if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
                    raise malformed(file, f"{str(name)[:80]!r} is no name of an array")
                stack.append(((*names, name), node[name]))
        elif isinstance(node, msgpack.ExtType) and node.code == INDEX_INFO and names:
            if sum(map(len, names)) > MAX_PATH:
                raise malformed(file, f"the path of an array is over {MAX_PATH} characters long")
            yield "/".join(names), node.data
        elif node is not None:
            raise malformed(file, f"{'/'.join(names)[:80]!r} is no array")


def _entry(number: int, path: str, data: bytes, shard_count: int, file: Path) -> Entry:
    match unpack(data, file):
        case [bytes(array), list(packed), list(shards)] if len(packed) == len(shards):
            pass
        case _:
            raise malformed(file, f"{path} does not say its shape, slices and data files")
    match unpack(array, file):
        case [list(sizes), str(name), bool(), dict()]:
            shape, dtype = shape_of(sizes, file), dtype_of(name, file)
        case _:
            raise malformed(file, f"{path} does not say its shape and dtype")
    parts = tuple(read_slices(item, file) for item in packed)
    for part in parts:
        if len(part) != len(shape) or any(
            stop > n for (_, stop), n in zip(part, shape, strict=True)
        ):
            raise malformed(file, f"{path} has a slice outside its shape {list(shape)}")
    if not all(type(shard) is int and 0 <= shard < shard_count for shard in shards):
        raise malformed(file, f"{path} is in a data file beyond the {shard_count} there are")
    if len(set(parts)) < len(parts) or (len(parts) > 1 and not all(map(volume, parts))):
        raise malformed(file, f"{path} has a slice twice, or an empty one")
    if sum(map(volume, parts)) != math.prod(shape) or not parts:
        raise malformed(file, f"the slices of {path} do not make up its shape {list(shape)}")
    return Entry(number, path, shape, dtype, tuple(zip(parts, shards, strict=True)))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
