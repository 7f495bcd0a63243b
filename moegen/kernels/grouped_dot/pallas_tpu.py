"""Grouped products on TPUs: rows of every expert times its weights, or times their transpose.

One step of the grid is one tile of rows, the part of it that one expert owns, and one block of
columns, over the whole contracted width: nothing is accumulated between steps. A tile that several
experts share is visited by each and stays in place meanwhile; a visit computes no more rows than
its expert has there, rounded up to one of a few heights. Weights come some experts ahead; the very
first block of them and the very last tile of results move in chunks, while others are computed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.heights import compute_heights, whole_is_best
from moegen.kernels.grouped_dot.results_tpu import (
    await_all,
    make_room,
    results_scratch,
    send_chunk,
    send_tile,
)
from moegen.kernels.grouped_dot.visits import row_visits
from moegen.kernels.grouped_dot.vmem import dot_bytes
from moegen.kernels.grouped_dot.weights_tpu import (
    await_chunk,
    chunk_of,
    first_weights,
    part_of,
    turn_weights,
    weights_here,
    weights_scratch,
)


def grouped_dot_tpu(
    rows: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    *extra: jax.Array,
    tile: tuple[int, ...],
    transposed: bool = False,
    epilogue: Callable[..., tuple[jax.Array, ...]] | None = None,
    dtypes: tuple[jax.typing.DTypeLike, ...] = (),
    interpret: Any = False,
) -> Any:
    """Rows [N, D] times the weights [E, D, F] of their expert: [N, F]; rows of none give 0.

    Args:
      rows: bf16 or f32, sorted by expert.
      weights: [E, F, D] if `transposed`; of the rows' dtype, or i8 or f8e4m3, whose scales are
        the epilogue's: they are read as they are, and converted once for each expert and block.
      sizes: i32[E], rows of each expert.
      *extra: what the epilogue reads beside the product: [N, F], [N, 1], [1, F] or [1, 1] each;
        [E, 1, F] or [E, 1, 1], of the row's expert.
      tile: columns of a block, which divide F; then heights, multiples of 16, the tallest first:
        that of a tile of rows, and those of its parts.
      transposed: whether the weights are [E, F, D].
      epilogue: elementwise, of the product in f32 and of `extra`; gives a result per dtype.
      dtypes: of the epilogue's results.
      interpret: how to run where there is no TPU, as in `pl.pallas_call`.

    Returns:
      One array, or a tuple of one per dtype if there is an epilogue.

    Raises:
      ValueError: if the blocks of columns are not all alike.
    """
    if (width := weights.shape[1 if transposed else 2]) % tile[0]:
        raise ValueError(f"{width} columns are no blocks of {tile[0]}; fix: a divisor of {width}")
    visits = row_visits(sizes, rows.shape[0], tile[1])
    made = dot_of_visits(
        visits, rows, weights, *extra, tile=tile, transposed=transposed,
        epilogue=epilogue, dtypes=dtypes or (rows.dtype,), interpret=interpret,
    )  # fmt: skip
    return made if dtypes else made[0]


def dot_of_visits(
    visits: tuple[Any, ...],
    rows: jax.Array,
    weights: jax.Array,
    *extra: jax.Array,
    tile: tuple[int, ...],
    transposed: bool,
    epilogue: Callable[..., tuple[jax.Array, ...]] | None,
    dtypes: tuple[jax.typing.DTypeLike, ...],
    whole: bool = False,
    interpret: Any = False,
) -> tuple[jax.Array, ...]:
    """The kernel's call for visits that are known; `whole`: each owns all rows of its tile."""
    (wide, *heights), (*lists, count) = tile, visits
    experts, tall, depth = weights.shape[0], heights[0], rows.shape[1]
    width = weights.shape[1 if transposed else 2]
    shape = (wide, depth) if transposed else (depth, wide)

    def at(n: Any, v: Any, tiles: Any, expert: Any, *_: Any) -> tuple[Any, ...]:
        return tiles[v], jnp.minimum(expert[v], experts - 1), n

    whole_rows = -(-rows.shape[0] // 16) * 16  # results are copied by registers
    results = [jax.ShapeDtypeStruct((whole_rows, width), dtype) for dtype in dtypes]
    moved = [rows.dtype, *(x.dtype for x in extra), *(jnp.dtype(dtype) for dtype in dtypes)]
    vmem = dot_bytes(tall, depth, wide, moved, transposed)
    chunks = wide // chunk_of(wide, depth)
    coming = weights_scratch(shape, chunks, weights.dtype, rows.dtype)
    going = results_scratch(tall, wide, chunks, dtypes)
    made = pl.pallas_call(
        functools.partial(
            dot_kernel, heights=tuple(heights), results=len(results), coming=len(coming),
            chunks=chunks, wide=wide, transposed=transposed, epilogue=epilogue, whole=whole,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(width, wide), count),
            in_specs=[
                pl.BlockSpec((tall, depth), lambda n, v, tiles, *_: (tiles[v], 0)),
                pl.BlockSpec(memory_space=pl.ANY),
                *(operand_block(x, tall, wide, at) for x in extra),
            ],
            out_specs=[pl.BlockSpec(memory_space=pl.ANY)] * len(results),
            scratch_shapes=[*coming, *going],
        ),
        out_shape=results,
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem + 2**21),
        interpret=interpret,
        name="grouped_dot_tpu",
    )(*lists, rows, weights, *extra)  # fmt: skip
    return tuple(x[: rows.shape[0]] for x in made)


def operand_block(x: Any, tall: int, wide: int, at: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec:
    """Where a step finds an epilogue's operand; `at` gives its tile of rows, expert and columns."""
    by_row, by_column = x.shape[-2] > 1, x.shape[-1] > 1
    shape = (tall if by_row else 1, wide if by_column else 1)

    def place(*step: Any) -> tuple[Any, ...]:
        tile, expert, column = at(*step)
        rows_columns = (tile if by_row else 0, column if by_column else 0)
        return (expert, *rows_columns) if x.ndim == 3 else rows_columns

    return pl.BlockSpec((None, *shape) if x.ndim == 3 else shape, place)


def dot_kernel(
    tiles: Any,
    owners: Any,
    first: Any,
    past: Any,
    rows: Any,
    weights: Any,
    *refs: Any,
    results: int,
    coming: int,
    chunks: int,
    wide: int,
    transposed: bool,
    **settings: Any,
) -> None:
    """One step: the visit of its number; the very first and the very last one by chunks."""
    column, visit = pl.program_id(0), pl.program_id(1)
    columns, count = pl.num_programs(0), pl.num_programs(1)
    given = len(refs) - coming - 2 * results - 2
    extra, outs, scratch = refs[:given], refs[given : given + results], refs[given + results :]
    blocks, going = scratch[:coming], scratch[coming:]
    tile, axis = tiles[visit], 0 if transposed else 1
    at = column * pl.cdiv(outs[0].shape[0], rows.shape[0]) + tile
    start, final = (column == 0) & (visit == 0), (column == columns - 1) & (visit == count - 1)
    source, lists = (weights, blocks, axis), (owners, count, columns)
    opens = (visit == 0) | (tiles[jnp.maximum(visit - 1, 0)] != tile)
    make_room(at, opens, outs, going)

    def compute(begin: Any, size: int) -> None:
        block = part_of(weights_here(blocks), begin, size, axis)
        own = [x if x.shape[1] < wide else part_of(x, begin, size, 1) for x in extra]
        made = [part_of(x.at[at & 1], begin, size, 1) for x in going[:results]]
        compute_visit(
            owners[visit], first[visit], past[visit], rows, block, own, made,
            experts=weights.shape[0], transposed=transposed, **settings,
        )  # fmt: skip

    def chunk(k: Any, _: None) -> None:
        pl.when(start)(lambda: await_chunk(k, *lists, *source))
        compute(pl.multiple_of(k * (wide // chunks), wide // chunks), wide // chunks)
        pl.when(final)(lambda: send_chunk(k, at, column, outs, going))

    def by_chunks() -> None:
        pl.when(start)(lambda: first_weights(*lists, *source))
        pl.when(~start)(lambda: turn_weights(visit, *lists, *source))
        jax.lax.fori_loop(0, chunks, chunk, None)
        pl.when(final)(lambda: await_all(at, column, outs, going))

    def at_once() -> None:
        turn_weights(visit, *lists, *source)
        compute(0, wide)

    if chunks == 1:
        by_chunks()
    else:
        pl.when(start | final)(by_chunks)
        pl.when(~(start | final))(at_once)
    ends = (visit == count - 1) | (tiles[jnp.minimum(visit + 1, count - 1)] != tile)
    pl.when(ends & ~final)(lambda: send_tile(at, column, outs, going))


def compute_visit(
    owner: Any,
    begin: Any,
    end: Any,
    rows: Any,
    weights: Any,
    extra: Sequence[Any],
    outs: Sequence[Any],
    *,
    experts: int,
    heights: tuple[int, ...],
    transposed: bool,
    epilogue: Callable[..., tuple[jax.Array, ...]] | None,
    whole: bool,
) -> None:
    """One visit: writes its rows of the tile and leaves those before them as they are.

    Rows after its own may get anything: they belong to a later visit of the same tile.
    """
    tall = heights[0]
    low = begin & -16  # rows of bf16 come in registers of 16
    needed = jnp.where(owner < experts, end - low, 0)

    def write(height: int, values: tuple[jax.Array, ...], at: Any, shared: bool) -> None:
        mine = at + jax.lax.broadcasted_iota(jnp.int32, (height, 1), 0) >= begin
        for out, value in zip(outs, values, strict=True):
            place = (pl.ds(at, height), slice(None))
            value = value.astype(out.dtype)
            out[place] = jnp.where(mine, value, out[place]) if shared else value

    def compute(height: int, at: Any, shared: bool) -> None:
        place = (pl.ds(at, height), slice(None))
        dims = (((1,), (1 if transposed else 0,)), ((), ()))
        acc = jax.lax.dot_general(
            rows[place], weights[...], dims, preferred_element_type=jnp.float32
        )
        if epilogue is None:
            return write(height, (acc,), at, shared)
        given = [x[place] if x.shape[0] == tall else x[...] for x in extra]
        values = epilogue(acc, *(x.astype(jnp.float32) for x in given))
        return write(height, values, at, shared)

    if whole:
        return compute(tall, 0, False)
    all_ = (begin == 0) & whole_is_best(needed, heights)
    compute_heights(needed, low, all_, heights, compute)
    zeros = tuple(jnp.zeros(out.shape, out.dtype) for out in outs)
    pl.when(needed == 0)(lambda: write(tall, zeros, 0, True))
    return None
