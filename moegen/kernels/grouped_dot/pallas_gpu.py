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
    tiles = pl.cdiv(count, tall)
    owners = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(tiles) * tall, side="right")

    def grouped_dot(owners: Any, rows: Any, weights: Any, *refs: Any) -> None:
        row, column = jax.lax.axis_index("row"), jax.lax.axis_index("column")
        owner, outs = owners[row], refs[len(extra) :]
        place = (pl.ds(row * tall, tall), pl.ds(column * wide, wide))
        of_rows = plgpu.BlockSpec((tall, deep), lambda k: (row, k), delay_release=1)
        of_weights = plgpu.BlockSpec(
            (wide, deep) if transposed else (deep, wide),
            lambda k: (column, k) if transposed else (k, column),
            delay_release=1,
        )

        @pl.when(owner < experts)
        def _() -> None:
            acc = multiplied(
                (rows, weights.at[owner]), (of_rows, of_weights), pl.cdiv(depth, deep), steps,
                (tall, wide), transposed=(False, transposed),
            )  # fmt: skip
            if epilogue is None:
                return store(outs, (acc,), place)
            given = zip(refs, extra, strict=False)
            read = [read_tile(ref, x.shape, place, (tall, wide)) for ref, x in given]
            return store(outs, epilogue(acc, *read), place)

        @pl.when(owner >= experts)
        def _() -> None:
            store(outs, [jnp.zeros((tall, wide), out.dtype) for out in outs], place)

    made = plgpu.kernel(
        grouped_dot,
        out_type=[jax.ShapeDtypeStruct((count, width), d) for d in dtypes or (rows.dtype,)],
        grid=(tiles, pl.cdiv(width, wide)),
        grid_names=("row", "column"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpreter() if interpret else False,
    )(owners.astype(jnp.int32), rows, weights, *map(flat, extra))
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
        first = starts[expert]
        specs = (
            plgpu.BlockSpec((deep, tall), lambda k: (first + k, row), delay_release=1),
            plgpu.BlockSpec((deep, wide), lambda k: (first + k, column), delay_release=1),
        )
        acc = multiplied((a, b), specs, counts[expert], steps, (tall, wide), (True, False))
        store((out.at[expert],), (acc,), (pl.ds(row * tall, tall), pl.ds(column * wide, wide)))

    made: jax.Array = plgpu.kernel(
        grouped_outer,
        out_type=jax.ShapeDtypeStruct((experts, height, width), a.dtype),
        grid=(experts, pl.cdiv(height, tall), pl.cdiv(width, wide)),
        grid_names=("expert", "row", "column"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpreter() if interpret else False,
    )(starts.astype(jnp.int32), counts.astype(jnp.int32), a, b)
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


def store(outs: Any, values: Any, place: tuple[Any, Any]) -> None:
    """Writes a tile of each result, through shared memory."""
    for out, value in zip(outs, values, strict=True):

        def write(staged: Any, out: Any = out, value: Any = value) -> None:
            staged[...] = value.astype(out.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(staged, out.at[place])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(write, plgpu.SMEM(value.shape, out.dtype))


def interpreter() -> Any:
    """What `plgpu.kernel` takes to run a kernel on a CPU.

    Raises:
      NotImplementedError: on a jax whose interpreter knows no TMA.
    """
    if not hasattr(plgpu, "InterpretGPUParams"):
        raise NotImplementedError(
            f"pallas_gpu: jax {jax.__version__} cannot interpret copies by TMA; fix: use jax 0.12 "
            "or later, or another kernel"
        )
    return plgpu.InterpretGPUParams()


def flat(x: jax.Array) -> jax.Array:
    """An operand of the epilogue as TMA can read it: vectors have one dim."""
    return x if min(x.shape) > 1 else x.reshape(-1)


def read_tile(ref: Any, of: tuple[int, ...], place: tuple[Any, Any], shape: tuple[int, int]) -> Any:
    """A tile of an operand of shape `of` in f32, spread over the tile of the product."""
    dims = tuple(i for i in (0, 1) if of[i] > 1)
    if not dims:
        return jnp.full(shape, ref[0].astype(jnp.float32))

    def read(staged: Any, barrier: Any) -> Any:
        plgpu.copy_gmem_to_smem(ref.at[tuple(place[i] for i in dims)], staged, barrier)
        plgpu.barrier_wait(barrier)
        value = staged[...].astype(jnp.float32)
        return value if len(dims) == 2 else jax.lax.broadcast_in_dim(value, shape, dims)

    part = tuple(shape[i] for i in dims)
    return pl.run_scoped(read, plgpu.SMEM(part, ref.dtype), plgpu.Barrier())
