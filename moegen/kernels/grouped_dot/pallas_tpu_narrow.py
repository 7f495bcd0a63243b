"""Grouped products on TPUs with weights of 8 bits, which are widened in VMEM.

As `grouped_dot_tpu`, but a block of weights comes from HBM as it is stored, in half or a quarter of
the bytes, and is converted to the dtype of the rows once for each expert and block of columns.
The narrow block twice and the wide one once take no more VMEM than two wide blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot.pallas_tpu import compute_visit, operand_block
from moegen.kernels.grouped_dot.visits import row_visits
from moegen.kernels.grouped_dot.vmem import dot_bytes


def narrow_dot_tpu(
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
      weights: i8 or f8e4m3; [E, F, D] if `transposed`. Their scales are the epilogue's.
      sizes: i32[E], rows of each expert.
      *extra: what the epilogue reads beside the product, as in `grouped_dot_tpu`, as is the rest.
      tile: columns of a block; then heights, the tallest first.
      transposed: whether the weights are [E, F, D].
      epilogue: elementwise, of the product in f32 and of `extra`; gives a result per dtype.
      dtypes: of the epilogue's results.
      interpret: how to run where there is no TPU, as in `pl.pallas_call`.

    Returns:
      One array, or a tuple of one per dtype if there is an epilogue.
    """
    made = narrow_of_visits(
        row_visits(sizes, rows.shape[0], tile[1]), rows, weights, *extra, tile=tile,
        transposed=transposed, epilogue=epilogue, dtypes=dtypes or (rows.dtype,),
        interpret=interpret,
    )  # fmt: skip
    return made if dtypes else made[0]


def narrow_of_visits(
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
    """The kernel's call for visits that are known; `whole`: each owns its tile and an expert."""
    (wide, *heights), (*lists, count) = tile, visits
    experts, tall, depth = weights.shape[0], heights[0], rows.shape[1]
    width = weights.shape[1 if transposed else 2]
    shape = (wide, depth) if transposed else (depth, wide)

    def at(n: Any, v: Any, tiles: Any, expert: Any, *_: Any) -> tuple[Any, ...]:
        return tiles[v], jnp.minimum(expert[v], experts - 1), n

    def weights_at(*step: Any) -> tuple[Any, ...]:
        _, owner, column = at(*step)
        return (owner, column, 0) if transposed else (owner, 0, column)

    results = [jax.ShapeDtypeStruct((rows.shape[0], width), dtype) for dtype in dtypes]
    moved = [rows.dtype, *(x.dtype for x in extra), *(jnp.dtype(dtype) for dtype in dtypes)]
    vmem = dot_bytes(tall, depth, wide, moved, transposed)
    made = pl.pallas_call(
        functools.partial(
            narrow_kernel, experts=experts, heights=tuple(heights), results=len(results),
            transposed=transposed, epilogue=epilogue, whole=whole,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(width, wide), count),
            in_specs=[
                pl.BlockSpec((tall, depth), lambda n, v, tiles, *_: (tiles[v], 0)),
                pl.BlockSpec((None, *shape), weights_at),
                *(operand_block(x, tall, wide, at) for x in extra),
            ],
            out_specs=[operand_block(x, tall, wide, at) for x in results],
            scratch_shapes=[pltpu.VMEM(shape, rows.dtype)],
        ),
        out_shape=results,
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem + 2**21),
        interpret=interpret,
        name="narrow_dot_tpu",
    )(*lists, rows, weights, *extra)  # fmt: skip
    return tuple(made)


def narrow_kernel(
    tiles: Any,
    owners: Any,
    first: Any,
    past: Any,
    rows: Any,
    weights: Any,
    *refs: Any,
    results: int,
    whole: bool,
    **settings: Any,
) -> None:
    """One step: widens the weights where they are another expert's, then computes the visit."""
    visit, (*given, widened) = pl.program_id(1), refs
    before = owners[jnp.maximum(visit - 1, 0)]

    def widen() -> None:
        widened[...] = weights[...].astype(jnp.float32).astype(widened.dtype)

    if whole:
        widen()
    else:
        pl.when((visit == 0) | (before != owners[visit]))(widen)
    own, refs = (owners[visit], first[visit], past[visit]), tuple(given)
    extra, outs = refs[:-results], refs[-results:]
    compute_visit(*own, rows, widened, extra, outs, whole=whole, **settings)
