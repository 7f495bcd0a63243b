"""Gradients of experts' weights on TPUs: per expert, the sum over its rows of outer products.

One step of the grid is one tile of rows, the part of it that one expert owns, and one block of the
result, which stays in place while the expert does. Rows of other experts in the tile are masked,
and no more rows are multiplied than the expert has there, rounded up to one of a few heights.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.visits import expert_visits, padded_bytes


def grouped_outer_tpu(
    a: jax.Array,
    b: jax.Array,
    sizes: jax.Array,
    *,
    tile: tuple[int, ...],
    interpret: Any = False,
) -> jax.Array:
    """Per expert, the sum over its rows of a[N, D] times b[N, F]: [E, D, F].

    Args:
      a: bf16 or f32, sorted by expert.
      b: of the same dtype.
      sizes: i32[E], rows of each expert; without any, its result is 0.
      tile: widths of a block of the result in D and F; then heights, multiples of 16, the tallest
        first: that of a tile of rows, and those of its parts.
      interpret: how to run where there is no TPU, as in `pl.pallas_call`.
    """
    visits = expert_visits(sizes, a.shape[0], tile[2])
    return outer_of_visits(visits, a, b, sizes.shape[0], tile=tile, interpret=interpret)


def outer_of_visits(
    visits: tuple[Any, ...],
    a: jax.Array,
    b: jax.Array,
    experts: int,
    *,
    tile: tuple[int, ...],
    whole: bool = False,
    interpret: Any = False,
) -> jax.Array:
    """The kernel's call for visits that are known; `whole`: each owns all rows of its tile."""
    (deep, wide, *heights), (*lists, count) = tile, visits
    tall, depth, width = heights[0], a.shape[1], b.shape[1]
    blocks = [((tall, deep), a.dtype), ((tall, wide), b.dtype), ((deep, wide), a.dtype)]
    vmem = 2 * padded_bytes(blocks) + padded_bytes([((deep, wide), jnp.float32)] * 2)
    made: jax.Array = pl.pallas_call(
        functools.partial(outer_kernel, heights=tuple(heights), whole=whole),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(depth, deep), pl.cdiv(width, wide), count),
            in_specs=[
                pl.BlockSpec((tall, deep), lambda k, n, v, tiles, *_: (tiles[v], k)),
                pl.BlockSpec((tall, wide), lambda k, n, v, tiles, *_: (tiles[v], n)),
            ],
            out_specs=pl.BlockSpec(
                (None, deep, wide), lambda k, n, v, tiles, owners, *_: (owners[v], k, n)
            ),
            scratch_shapes=[pltpu.VMEM((deep, wide), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((experts, depth, width), a.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem + 2**20),
        interpret=interpret,
        name="grouped_outer_tpu",
    )(*lists, a, b)
    return made


def outer_kernel(
    tiles: Any,
    owners: Any,
    first: Any,
    past: Any,
    a: Any,
    b: Any,
    out: Any,
    total: Any,
    *,
    heights: tuple[int, ...],
    whole: bool,
) -> None:
    """One visit: adds the products of its rows to the expert's total, from 0 at its first visit."""
    visit, tall = pl.program_id(2), heights[0]
    begin, end = first[visit], past[visit]
    low = begin & -16  # rows of bf16 come in registers of 16
    needed = jnp.where(end > begin, end - low, 0)
    fresh = (visit == 0) | (owners[jnp.maximum(visit - 1, 0)] != owners[visit])

    def compute(height: int) -> None:
        at = 0 if height == tall else pl.multiple_of(jnp.minimum(low, tall - height), 16)
        row = at + jax.lax.broadcasted_iota(jnp.int32, (height, 1), 0)
        mine = (row >= begin) & (row < end)
        one, other = (jnp.where(mine, x[pl.ds(at, height), :], 0) for x in (a, b))
        part = jax.lax.dot_general(
            one, other, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        total[...] = jnp.where(fresh, part, total[...] + part)
        out[...] = total[...].astype(out.dtype)

    if whole:
        return compute(tall)
    for height, lower in zip(heights, (*heights[1:], 0), strict=True):
        pl.when((lower < needed) & (needed <= height))(functools.partial(compute, height))

    @pl.when(needed == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    return None
