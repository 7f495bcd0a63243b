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

from moegen.kernels.grouped_dot.pallas_gpu import flat, interpreter, read_tile, store


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
    tiles = pl.cdiv(count, tall)
    owners = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(tiles) * tall, side="right")

    def grouped_dot(owners: Any, rows: Any, weights: Any, *refs: Any) -> None:
        row, column = jax.lax.axis_index("row"), jax.lax.axis_index("column")
        owner, outs, acc, done = owners[row], refs[len(extra) : -2], *refs[-2:]
        of_rows = plgpu.BlockSpec((tall, deep), lambda k: (row, k), delay_release=1)
        of_weights = plgpu.BlockSpec(
            (wide, deep) if transposed else (deep, wide),
            lambda k: (column, k) if transposed else (k, column),
            delay_release=1,
        )

        @pl.when(owner < experts)
        def _() -> None:
            multiply_into(
                acc, done, (rows, weights.at[owner]), (of_rows, of_weights),
                pl.cdiv(depth, deep), steps, (False, transposed),
            )  # fmt: skip

        def finished(value: Any, place: Any) -> Any:
            if epilogue is None:
                return (value,)
            given = zip(refs, extra, strict=False)
            return epilogue(value, *(read_tile(r, x.shape, place, value.shape) for r, x in given))

        for place, part in parts_of_tile((row * tall, column * wide), tile):
            store_part(outs, acc, owner < experts, finished, place, part)

    made = plgpu.kernel(
        grouped_dot,
        out_type=[jax.ShapeDtypeStruct((count, width), d) for d in dtypes or (rows.dtype,)],
        scratch_types=accumulator(tall, wide),
        grid=(tiles, pl.cdiv(width, wide)),
        grid_names=("row", "column"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpreter() if interpret else False,
    )(owners.astype(jnp.int32), rows, weights, *map(flat, extra))
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
        first, slices, (acc, done) = starts[expert], counts[expert], scratch
        specs = (
            plgpu.BlockSpec((deep, tall), lambda k: (first + k, row), delay_release=1),
            plgpu.BlockSpec((deep, wide), lambda k: (first + k, column), delay_release=1),
        )

        @pl.when(slices > 0)
        def _() -> None:
            multiply_into(acc, done, (a, b), specs, slices, steps, (True, False))

        for place, part in parts_of_tile((row * tall, column * wide), tile):
            store_part(
                (out.at[expert],), acc, slices > 0, lambda value, place: (value,), place, part
            )

    made: jax.Array = plgpu.kernel(
        grouped_outer,
        out_type=jax.ShapeDtypeStruct((experts, height, width), a.dtype),
        scratch_types=accumulator(tall, wide),
        grid=(experts, pl.cdiv(height, tall), pl.cdiv(width, wide)),
        grid_names=("expert", "row", "column"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpreter() if interpret else False,
    )(starts.astype(jnp.int32), counts.astype(jnp.int32), a, b)
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
