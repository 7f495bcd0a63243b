"""Gradients of experts' weights on TPUs: per expert, the sum over its rows of outer products.

One step of the grid is one tile of an expert's rows and one block of the result, which stays in
place while the expert does. An expert's tiles start at its own first row, rounded down to a whole
register: no tile is shared. Of the last one no more rows are multiplied than the expert has,
rounded up to the least height; rows of others are masked.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.visits import sums
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
        first: that of a tile of rows, and those of its parts, each half of the one before.
      interpret: how to run where there is no TPU, as in `pl.pallas_call`.
    """
    visits = own_visits(sizes, a.shape[0], tile[2])
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
                _rows(tall, deep, depth, lambda k, n: k),
                _rows(tall, wide, width, lambda k, n: n),
            ],
            out_specs=pl.BlockSpec(
                (None, deep, wide), lambda k, n, v, starts, owners, *_: (owners[v], k, n)
            ),
            scratch_shapes=[pltpu.VMEM((deep, wide), jnp.float32), pltpu.SMEM((1,), jnp.int32)],
        ),
        out_shape=jax.ShapeDtypeStruct((experts, depth, width), a.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem + 2**21),
        interpret=interpret,
        name="grouped_outer_tpu",
    )(*lists, a, b)
    return made


def own_visits(
    sizes: jax.Array, rows: int, tall: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Lists for every expert the tiles of its rows, in order; one of no rows if it has none.

    Args:
      sizes: i32[E], rows of each expert; they follow each other.
      rows: of all experts and of none, static.
      tall: rows of a tile; the last one may reach past the rows.

    Returns:
      For each visit i32[V]: the row that its tile starts at, its expert, and the first row in the
      tile and the one past the last that are the expert's; and how many of the V there are.
    """
    experts = sizes.shape[0]
    group = jnp.arange(experts, dtype=jnp.int32)
    # Tiles start at registers, 16 rows of bf16. No constant: emitted modules have functions only.
    visit = jnp.arange((rows + 15 * experts) // tall + experts, dtype=jnp.int32)
    ends = sums(sizes, group[:, None] >= group)
    begins = sums(sizes, group[:, None] > group)
    # An expert without rows may start past the last row.
    leads = jnp.minimum(begins, rows - 1) & -16
    count = jnp.maximum(jax.lax.div(ends - leads + tall - 1, tall), 1)
    count = jnp.where(ends > begins, count, 1)
    before = sums(count, group[:, None] > group)
    mine = (visit[:, None] >= before) & (visit[:, None] < before + count)
    start = sums(leads - before * tall, mine) + jnp.where(jnp.any(mine, 1), visit * tall, 0)
    first = jnp.clip(sums(begins, mine) - start, 0, tall)
    past = jnp.clip(sums(ends, mine) - start, 0, tall)
    return start, sums(group, mine), first, past, jnp.sum(count, dtype=jnp.int32)


def outer_kernel(
    starts: Any,
    owners: Any,
    first: Any,
    past: Any,
    a: Any,
    b: Any,
    out: Any,
    total: Any,
    fresh: Any,
    *,
    heights: tuple[int, ...],
    whole: bool,
) -> None:
    """One visit: adds the products of its rows to the expert's total, from 0 at its first visit.

    `fresh`: whether the total is still to be started.
    """
    visit, tall, least = pl.program_id(2), heights[0], heights[-1]
    begin, end = first[visit], past[visit]

    def compute(height: int, at: Any, shared: bool) -> None:
        one, other = (x[pl.ds(at, height), :] for x in (a, b))
        if shared:
            row = at + jax.lax.broadcasted_iota(jnp.int32, (height, 1), 0)
            mine = (row >= begin) & (row < end)
            one, other = (jnp.where(mine, x, 0) for x in (one, other))
        part = jax.lax.dot_general(
            one, other, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        total[...] = jnp.where(fresh[0] > 0, part, total[...] + part)
        out[...] = total[...].astype(out.dtype)
        fresh[0] = 0

    before = owners[jnp.maximum(visit - 1, 0)]
    fresh[0] = ((visit == 0) | (before != owners[visit])).astype(jnp.int32)
    if whole:
        return compute(tall, 0, False)
    all_ = (begin == 0) & (end == tall)
    pl.when(all_)(functools.partial(compute, tall, 0, False))
    needed = jnp.where(end > begin, end + least - 1 & -least, 0)

    @pl.when(jnp.logical_not(all_))
    def _() -> None:
        most, *less = heights[1:] or heights

        def one(i: Any, _: None) -> None:
            compute(most, pl.multiple_of(i * most, most), True)

        jax.lax.fori_loop(0, jax.lax.div(needed, most), one, None)
        for height in less:
            at = pl.multiple_of(needed & -2 * height, height)
            pl.when(needed & height > 0)(functools.partial(compute, height, at, True))

    @pl.when(needed == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    return None


def _rows(tall: int, wide: int, width: int, column: Callable[[Any, Any], Any]) -> pl.BlockSpec:
    """Tiles that start at any register of rows; they may reach past the last row."""

    def place(k: Any, n: Any, v: Any, starts: Any, *_: Any) -> tuple[Any, Any]:
        return pl.multiple_of(starts[v], 16), column(k, n) * wide if wide < width else 0

    return pl.BlockSpec((pl.Element(tall, padding=(0, tall)), pl.Element(wide)), place)
