"""Grouped products on NVIDIA GPUs of the Hopper kind, by Pallas Mosaic GPU (wgmma and TMA).

Rows of an expert start at a multiple of a tile's height, as the sorted format lays them out, so
that a tile of rows has one expert and nothing is computed twice. A block of the grid makes one tile
of the result: TMA brings slices of rows and weights to shared memory in a pipeline, wgmma adds up
their product in registers, and the epilogue runs there. TMA gives zeros for what lies past the end
of an array and does not write there, so that widths are multiples of 64, not of the tile's.
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


def grouped_dot_gpu(
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
        owner, outs = owners[row], refs[len(extra) :]
        place = (pl.ds(row * tall, tall), pl.ds(column * wide, wide))

        @pl.when(owner < experts)
        def _() -> None:
            specs = slices_of_dot(row, column, tile, transposed)
            acc = multiplied(
                (rows, weights.at[owner]), specs, pl.cdiv(depth, deep), steps, (tall, wide),
                transposed=(False, transposed),
            )  # fmt: skip
            if epilogue is None:
                return store(outs, (acc,), place)
            given = zip(refs, extra, strict=False)
            read = [read_tile(ref, x.shape, place, (tall, wide)) for ref, x in given]
            return store(outs, epilogue(acc, *read), place)

        @pl.when(owner >= experts)
        def _() -> None:
            store(outs, [jnp.zeros((tall, wide), out.dtype) for out in outs], place)

    made = launch(
        grouped_dot,
        [jax.ShapeDtypeStruct((count, width), d) for d in dtypes or (rows.dtype,)],
        {"row": owners.shape[0], "column": pl.cdiv(width, wide)},
        (owners, rows, weights, *map(flat, extra)),
        interpret=interpret,
    )
    return tuple(made) if dtypes else made[0]


def grouped_outer_gpu(
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

    def grouped_outer(starts: Any, counts: Any, a: Any, b: Any, out: Any) -> None:
        expert, row, column = map(jax.lax.axis_index, ("expert", "row", "column"))
        specs = slices_of_outer(starts[expert], row, column, tile)
        acc = multiplied((a, b), specs, counts[expert], steps, (tall, wide), (True, False))
        store((out.at[expert],), (acc,), (pl.ds(row * tall, tall), pl.ds(column * wide, wide)))

    made: jax.Array = launch(
        grouped_outer,
        jax.ShapeDtypeStruct((experts, height, width), a.dtype),
        {"expert": experts, "row": pl.cdiv(height, tall), "column": pl.cdiv(width, wide)},
        (starts.astype(jnp.int32), counts.astype(jnp.int32), a, b),
        interpret=interpret,
    )
    return made


def multiplied(
    operands: tuple[Any, Any],
    specs: tuple[Any, Any],
    slices: Any,
    steps: int,
    shape: tuple[int, int],
    transposed: tuple[bool, bool],
) -> jax.Array:
    """The sum of the products of two operands' slices, f32; zeros where there are none."""

    def multiply(acc: Any) -> jax.Array:
        def step(_: Any, *slices: Any) -> None:
            turned = zip(slices, transposed, strict=True)
            plgpu.wgmma(acc, *(s.transpose((1, 0)) if t else s for s, t in turned))

        pipeline = plgpu.emit_pipeline(
            step, grid=(slices,), in_specs=list(specs), max_concurrent_steps=steps
        )
        if isinstance(slices, int):
            pipeline(*operands)
        else:
            pl.when(slices > 0)(lambda: pipeline(*operands))
        made: jax.Array = acc[...]
        return made

    made: jax.Array = pl.run_scoped(multiply, plgpu.ACC(shape))  # type: ignore[attr-defined]
    return made
