"""Grouped products on NVIDIA GPUs of the Blackwell kind, by Pallas Mosaic GPU (tcgen05 and TMA).

As in `pallas_gpu.py`, rows of an expert start at a multiple of a tile's height, and a block of the
grid makes one tile of the result. The tensor core adds up the product in tensor memory, on its own:
a step of the pipeline starts the product of its slices and waits for that of the step before. Then
some columns at a time are read and given to the epilogue, so that registers hold no whole tile.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from moegen.kernels.grouped_dot.mosaic import (
    flat,
    launch,
    owners_of_tiles,
    read_tile,
    slices_of_dot,
    slices_of_outer,
    store,
)


def grouped_dot_tcgen05(
    rows: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    *extra: jax.Array,
    tile: tuple[int, int, int, int],
    transposed: bool = False,
    epilogue: Callable[..., tuple[jax.Array, ...]] | None = None,
    dtypes: tuple[jax.typing.DTypeLike, ...] = (),
    interpret: bool = False,
) -> Any:
    """Rows [N, D] times the weights [E, D, F] of their expert: [N, F]; rows of none give 0.

    Args:
      rows: bf16 or f16, sorted by expert; D and F are multiples of 64.
      weights: of the same dtype; [E, F, D] if `transposed`.
      sizes: i32[E], rows of each expert, multiples of the tile's height.
      *extra: what the epilogue reads beside the product: [N, F], [N, 1], [1, F] or [1, 1] each.
      tile: height and width of a tile of the result, depth of a slice, slices in flight.
      transposed: whether the weights are [E, F, D].
      epilogue: elementwise, of the product in f32 and of `extra`; gives a result per dtype.
      dtypes: of the epilogue's results.
      interpret: whether to run where there is no GPU, which takes jax 0.12 or later.

    Returns:
      One array, or a tuple of one per dtype if there is an epilogue.
    """
    tall, wide, deep, steps = tile
    (count, depth), experts = rows.shape, weights.shape[0]
    width = weights.shape[1 if transposed else 2]
    owners = owners_of_tiles(sizes, count, tall)

    def grouped_dot(owners: Any, rows: Any, weights: Any, *refs: Any) -> None:
        row, column = jax.lax.axis_index("row"), jax.lax.axis_index("column")
        owner, outs, acc, done = owners[row], refs[len(extra) : -2], *refs[-2:]

        @pl.when(owner < experts)
        def _() -> None:
            specs = slices_of_dot(row, column, tile, transposed)
            multiply_into(
                acc, done, (rows, weights.at[owner]), specs, pl.cdiv(depth, deep), steps,
                transposed=(False, transposed),
            )  # fmt: skip

        def finished(value: Any, place: Any) -> Any:
            if epilogue is None:
                return (value,)
            given = zip(refs, extra, strict=False)
            return epilogue(value, *(read_tile(r, x.shape, place, value.shape) for r, x in given))

        for place, part in parts_of_tile((row * tall, column * wide), tile):
            store_part(outs, acc, owner < experts, finished, place, part)

    made = launch(
        grouped_dot,
        [jax.ShapeDtypeStruct((count, width), d) for d in dtypes or (rows.dtype,)],
        {"row": owners.shape[0], "column": pl.cdiv(width, wide)},
        (owners, rows, weights, *map(flat, extra)),
        scratch=accumulator(tall, wide),
        interpret=interpret,
    )
    return tuple(made) if dtypes else made[0]


def grouped_outer_tcgen05(
    a: jax.Array,
    b: jax.Array,
    sizes: jax.Array,
    *,
    tile: tuple[int, int, int, int],
    interpret: bool = False,
) -> jax.Array:
    """Per expert, the sum over its rows of a[N, D] times b[N, F]: [E, D, F].

    Args:
      a, b: bf16 or f16, sorted by expert; D and F are multiples of 64.
      sizes: i32[E], rows of each expert, multiples of the tile's depth.
      tile: height and width of a tile of the result, rows of a slice, slices in flight.
      interpret: whether to run where there is no GPU, which takes jax 0.12 or later.
    """
    tall, wide, deep, steps = tile
    experts, height, width = sizes.shape[0], a.shape[1], b.shape[1]
    counts = sizes // deep
    starts = jnp.cumsum(counts) - counts

    def grouped_outer(starts: Any, counts: Any, a: Any, b: Any, out: Any, *scratch: Any) -> None:
        expert, row, column = map(jax.lax.axis_index, ("expert", "row", "column"))
        slices, (acc, done) = counts[expert], scratch
        specs = slices_of_outer(starts[expert], row, column, tile)

        @pl.when(slices > 0)
        def _() -> None:
            multiply_into(acc, done, (a, b), specs, slices, steps, (True, False))

        for place, part in parts_of_tile((row * tall, column * wide), tile):
            store_part(
                (out.at[expert],), acc, slices > 0, lambda value, place: (value,), place, part
            )

    made: jax.Array = launch(
        grouped_outer,
        jax.ShapeDtypeStruct((experts, height, width), a.dtype),
        {"expert": experts, "row": pl.cdiv(height, tall), "column": pl.cdiv(width, wide)},
        (starts.astype(jnp.int32), counts.astype(jnp.int32), a, b),
        scratch=accumulator(tall, wide),
        interpret=interpret,
    )
    return made


def accumulator(tall: int, wide: int) -> list[Any]:
    """A tile in tensor memory, and barriers for the products of even and of odd steps."""
    return [
        plgpu.TMEM((tall, wide), jnp.float32),
        plgpu.Barrier(num_barriers=2, orders_tensor_core=True),
    ]


def multiply_into(
    acc: Any,
    done: Any,
    operands: tuple[Any, Any],
    specs: tuple[Any, Any],
    slices: Any,
    steps: int,
    transposed: tuple[bool, bool],
) -> None:
    """Makes `acc` the sum of the products of two operands' slices, one of each at least."""

    def step(indices: Any, *slices: Any) -> None:
        (k,) = indices
        turned = zip(slices, transposed, strict=True)
        a, b = (s.transpose((1, 0)) if t else s for s, t in turned)
        plgpu.tcgen05_mma(acc, a, b, done.at[jax.lax.rem(k, 2)], accumulate=k > 0)

        @pl.when(k > 0)
        def _() -> None:
            plgpu.barrier_wait(done.at[jax.lax.rem(k + 1, 2)])

    plgpu.emit_pipeline(step, grid=(slices,), in_specs=list(specs), max_concurrent_steps=steps)(
        *operands
    )
    plgpu.barrier_wait(done.at[jax.lax.rem(slices + 1, 2)])


def parts_of_tile(first: tuple[Any, Any], tile: tuple[int, int, int, int]) -> list[Any]:
    """Of every 64 columns of a tile: their place in the result, and in the tile."""
    tall, wide = tile[:2]
    part = min(64, wide)
    return [
        ((pl.ds(first[0], tall), pl.ds(first[1] + at, part)), pl.ds(at, part))
        for at in range(0, wide, part)
    ]


def store_part(
    outs: Any, acc: Any, some: Any, finished: Callable[..., Any], place: Any, part: Any
) -> None:
    """Writes what is made of some columns of the product; zeros where there is none."""

    @pl.when(some)
    def _() -> None:
        store(outs, finished(plgpu.async_load_tmem(acc.at[:, part]), place), place)

    @pl.when(jnp.logical_not(some))
    def _() -> None:
        store(outs, [jnp.zeros((acc.shape[0], part.size), out.dtype) for out in outs], place)
