"""Grouped products on TPUs: rows of every expert times its weights, or times their transpose.

One step of the grid is one tile of rows, the part of it that one expert owns, and one block of
columns, over the whole contracted width: nothing is accumulated between steps. A tile that several
experts share is visited by each and stays in place meanwhile; a visit computes no more rows than
its expert has there, rounded up to one of a few heights.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.heights import compute_heights, whole_is_best
from moegen.kernels.grouped_dot.visits import row_visits
from moegen.kernels.grouped_dot.vmem import dot_bytes


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
      weights: of the same dtype; [E, F, D] if `transposed`.
      sizes: i32[E], rows of each expert.
      *extra: what the epilogue reads beside the product: [N, F], [N, 1], [1, F] or [1, 1] each;
        [E, 1, F] or [E, 1, 1], of the row's expert.
      tile: columns of a block; then heights, multiples of 16, the tallest first: that of a tile
        of rows, and those of its parts.
      transposed: whether the weights are [E, F, D].
      epilogue: elementwise, of the product in f32 and of `extra`; gives a result per dtype.
      dtypes: of the epilogue's results.
      interpret: how to run where there is no TPU, as in `pl.pallas_call`.

    Returns:
      One array, or a tuple of one per dtype if there is an epilogue.
    """
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

    def weights_at(n: Any, v: Any, tiles: Any, expert: Any, *_: Any) -> tuple[Any, ...]:
        owner = jnp.minimum(expert[v], experts - 1)
        return (owner, n, 0) if transposed else (owner, 0, n)

    def block(x: Any) -> pl.BlockSpec:
        def at(n: Any, v: Any, tiles: Any, expert: Any, *_: Any) -> tuple[Any, ...]:
            return tiles[v], jnp.minimum(expert[v], experts - 1), n

        return operand_block(x, tall, wide, at)

    results = [jax.ShapeDtypeStruct((rows.shape[0], width), dtype) for dtype in dtypes]
    moved = [rows.dtype, *(x.dtype for x in extra), *(jnp.dtype(dtype) for dtype in dtypes)]
    vmem = dot_bytes(tall, depth, wide, moved, transposed)
    made = pl.pallas_call(
        functools.partial(
            dot_kernel, experts=experts, heights=tuple(heights), results=len(results),
            transposed=transposed, epilogue=epilogue, whole=whole,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(width, wide), count),
            in_specs=[
                pl.BlockSpec((tall, depth), lambda n, v, tiles, *_: (tiles[v], 0)),
                pl.BlockSpec((None, *shape), weights_at),
                *map(block, extra),
            ],
            out_specs=[pl.BlockSpec((tall, wide), lambda n, v, tiles, *_: (tiles[v], n))]
            * len(results),
        ),
        out_shape=results,
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem + 2**21),
        interpret=interpret,
        name="grouped_dot_tpu",
    )(*lists, rows, weights, *extra)  # fmt: skip
    return tuple(made)


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
    **settings: Any,
) -> None:
    """One step: the visit of its number."""
    visit = pl.program_id(1)
    own = (owners[visit], first[visit], past[visit])
    compute_visit(*own, rows, weights, refs[:-results], refs[-results:], **settings)


def compute_visit(
    owner: Any,
    begin: Any,
    end: Any,
    rows: Any,
    weights: Any,
    extra: tuple[Any, ...],
    outs: tuple[Any, ...],
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
