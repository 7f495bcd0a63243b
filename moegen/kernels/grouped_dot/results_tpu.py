"""Tiles of results on their way from VMEM, the last one in chunks of columns.

Pallas's own pipeline copies a block when it is computed as a whole: nothing runs beside the last.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.weights_tpu import part_of


def results_scratch(tall: int, wide: int, chunks: int, dtypes: Sequence[Any]) -> list[Any]:
    """Two tiles of each result, and semaphores of tiles and of the last one's chunks."""
    tiles = [pltpu.VMEM((2, tall, wide), dtype) for dtype in dtypes]
    many = len(tiles)
    return [*tiles, pltpu.SemaphoreType.DMA((many, 2)), pltpu.SemaphoreType.DMA((many, chunks))]


def make_room(at: Any, fresh: Any, outs: Sequence[Any], scratch: Any) -> None:
    """Before the first visit of tile number `at`, of all columns: waits for the last but one.

    Args:
      at: column times tiles, and the tile.
      fresh: whether this is the first visit.
      outs: the results in HBM, whose rows are a multiple of 16.
      scratch: of `results_scratch`.
    """
    pl.when(fresh & (at >= 2))(lambda: await_tile(at - 2, outs, scratch))


def await_tile(at: Any, outs: Sequence[Any], scratch: Any) -> None:
    """Waits until tile number `at` is in HBM."""
    *tiles, sent, _ = scratch

    def wait(height: int) -> None:
        for i, tile in enumerate(tiles):
            rows = part_of(tile.at[at & 1], 0, height, 0)
            pltpu.make_async_copy(rows, rows, sent.at[i, at & 1]).wait()

    by_height(at, outs[0].shape[0], tiles[0].shape[1], wait)


def send_tile(at: Any, column: Any, outs: Sequence[Any], scratch: Any) -> None:
    """Starts the copy of tile number `at`."""
    *tiles, sent, _ = scratch

    def send(height: int) -> None:
        for i, (out, tile) in enumerate(zip(outs, tiles, strict=True)):
            place = place_of(out, at, column, tile, height, 0, tile.shape[2])
            rows = part_of(tile.at[at & 1], 0, height, 0)
            pltpu.make_async_copy(rows, place, sent.at[i, at & 1]).start()

    by_height(at, outs[0].shape[0], tiles[0].shape[1], send)


def send_chunk(k: Any, at: Any, column: Any, outs: Sequence[Any], scratch: Any) -> None:
    """Starts the copy of one chunk of the last tile."""
    chunk_copies(k, at, column, outs, scratch, lambda copy: copy.start())


def await_all(at: Any, column: Any, outs: Sequence[Any], scratch: Any) -> None:
    """Waits for the last tile's chunks and the tile before."""
    pl.when(at >= 1)(lambda: await_tile(at - 1, outs, scratch))
    for k in range(scratch[-1].shape[1]):
        chunk_copies(k, at, column, outs, scratch, lambda copy: copy.wait())


def chunk_copies(
    k: Any, at: Any, column: Any, outs: Sequence[Any], scratch: Any, act: Callable[[Any], None]
) -> None:
    """What is to be done with the copy of a chunk, for each result."""
    *tiles, _, early = scratch
    chunks, (_, tall, wide) = early.shape[1], tiles[0].shape
    height = outs[0].shape[0] % tall or tall
    narrow = wide // chunks
    first = k * narrow if isinstance(k, int) else pl.multiple_of(k * narrow, narrow)
    for i, (out, tile) in enumerate(zip(outs, tiles, strict=True)):
        rows = part_of(part_of(tile.at[at & 1], 0, height, 0), first, narrow, 1)
        place = place_of(out, at, column, tile, height, first, narrow)
        act(pltpu.make_async_copy(rows, place, early.at[i, k]))


def place_of(
    out: Any, at: Any, column: Any, tile: Any, height: int, first: Any, columns: int
) -> Any:
    """Where in HBM some columns of a tile belong."""
    _, tall, wide = tile.shape
    number = jax.lax.rem(at, -(-out.shape[0] // tall))
    rows = part_of(out, pl.multiple_of(number * tall, 16), height, 0)
    return part_of(rows, column * wide + first, columns, 1)


def by_height(at: Any, rows: int, tall: int, act: Callable[[int], None]) -> None:
    """Runs `act` with the rows of tile number `at`: the last one may have fewer."""
    many, rest = -(-rows // tall), rows % tall
    last = jax.lax.rem(at, many) == many - 1
    if many > 1 or not rest:
        pl.when(~last if rest else at >= 0)(lambda: act(tall))
    if rest:
        pl.when(last)(lambda: act(rest))
