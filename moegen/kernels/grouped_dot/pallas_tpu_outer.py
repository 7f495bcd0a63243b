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

from moegen.kernels.grouped_dot.heights import compute_heights
from moegen.kernels.grouped_dot.visits import expert_visits
from moegen.kernels.grouped_dot.vmem import outer_bytes


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
    vmem = outer_bytes(tall, deep, wide, a.dtype)
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
            scratch_shapes=[pltpu.VMEM((deep, wide), jnp.float32), pltpu.SMEM((2,), jnp.int32)],
        ),
        out_shape=jax.ShapeDtypeStruct((experts, depth, width), a.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem + 2**21),
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
    counted: Any,
    *,
    heights: tuple[int, ...],
    whole: bool,
) -> None:
    """One visit: adds the products of its rows to the expert's total, from 0 at its first visit.

    `counted`: the row up to which rows are in the total, as parts of a tile may overlap; and
    whether the total is still to be started.
    """
    visit, tall = pl.program_id(2), heights[0]
    begin, end = first[visit], past[visit]
    low = begin & -16  # rows of bf16 come in registers of 16
    needed = jnp.where(end > begin, end - low, 0)
    fresh = (visit == 0) | (owners[jnp.maximum(visit - 1, 0)] != owners[visit])

    def compute(height: int, at: Any, shared: bool) -> None:
        one, other = (x[pl.ds(at, height), :] for x in (a, b))
        if shared:
            row = at + jax.lax.broadcasted_iota(jnp.int32, (height, 1), 0)
            mine = (row >= begin) & (row < end) & (row >= counted[0])
            one, other = (jnp.where(mine, x, 0) for x in (one, other))
            counted[0] = at + height
        part = jax.lax.dot_general(
            one, other, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        total[...] = jnp.where(counted[1] > 0, part, total[...] + part)
        out[...] = total[...].astype(out.dtype)
        counted[1] = 0

    counted[0], counted[1] = begin, fresh.astype(jnp.int32)
    if whole:
        return compute(tall, 0, False)
    compute_heights(needed, low, (begin == 0) & (end == tall), heights, compute)

    @pl.when(needed == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    return None
