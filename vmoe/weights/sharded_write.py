"""Writer of the released V-MoE system's checkpoints; see `sharded` for the format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from vmoe.weights.leaf import Leaf, Leaves, nested
from vmoe.weights.sharded import CHUNK, MARK, data_file, index_file
from vmoe.weights.sharded_index import INDEX_INFO, SLICES, VERSION
from vmoe.weights.whole import written_whole

CHUNK_BYTES = 2**30


def write(prefix: Path, leaves: Leaves, shards: int = 1, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Writes P.index and `shards` data files of about the same size, each array in one of them.

    The files appear under their names when all of them are complete, the index last.

    Args:
      prefix: P.
      leaves: the arrays, read one at a time.
      shards: number of data files.
      chunk_bytes: arrays are cut into chunks of at most so many bytes, or one entry.

    Raises:
      UserError: if a file cannot be written, or is there already.
    """
    paths = sorted(leaves, key=lambda path: path.split("/"))
    numbers = {path: number for number, path in enumerate(paths)}
    homes = _share_out(leaves, shards)
    files = [data_file(prefix, shard, shards) for shard in range(shards)]
    with written_whole(*files, index_file(prefix)) as unfinished:
        *data, index = unfinished
        for shard, file in enumerate(data):
            own = {numbers[path]: leaves[path] for path in paths if homes[path] == shard}
            with file.open("wb") as opened:
                _write_data(opened, own, chunk_bytes)
        infos = {path: _index_info(leaves[path], homes[path]) for path in paths}
        index.write_bytes(
            msgpack.packb({"shard_count": shards, "index": nested(infos), "version": VERSION})
        )


def _share_out(leaves: Leaves, shards: int) -> dict[str, int]:
    """The data file of each array: the largest first, each to the file with least in it."""
    bytes_in = [0] * shards
    homes: dict[str, int] = {}
    for path in sorted(leaves, key=lambda path: (-leaves[path].nbytes, path)):
        homes[path] = bytes_in.index(min(bytes_in))
        bytes_in[homes[path]] += leaves[path].nbytes
    return homes


def _write_data(opened: BinaryIO, leaves: dict[int, Leaf], chunk_bytes: int) -> None:
    packer = msgpack.Packer()
    opened.write(packer.pack_map_header(len(leaves) + 1))
    opened.write(packer.pack(MARK) + packer.pack(True))
    for number, leaf in leaves.items():
        chunks = list(_chunks(leaf.read(), chunk_bytes))
        opened.write(packer.pack(str(number)))
        opened.write(packer.pack_array_header(1) + packer.pack_array_header(2))
        opened.write(packer.pack_array_header(len(chunks)))
        for chunk in chunks:
            packed = msgpack.packb((chunk.shape, chunk.dtype.name, chunk.tobytes()))
            opened.write(packer.pack(msgpack.ExtType(CHUNK, packed)))
        opened.write(packer.pack(msgpack.ExtType(SLICES, _whole(leaf.shape))))


def _chunks(array: np.ndarray, chunk_bytes: int) -> Iterator[np.ndarray]:
    step = max(1, chunk_bytes // array.dtype.itemsize)
    values = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, max(values.size, 1), step):
        yield values[start : start + step]


def _index_info(leaf: Leaf, shard: int) -> Any:
    array = msgpack.packb((leaf.shape, leaf.dtype.name, False, {}))
    return msgpack.ExtType(INDEX_INFO, msgpack.packb((array, [_whole(leaf.shape)], [shard])))


def _whole(shape: tuple[int, ...]) -> bytes:
    """The packed slices of a whole array."""
    return bytes(msgpack.packb([msgpack.packb((0, size, None)) for size in shape]))
