"""What kernels by Pallas Mosaic GPU share, whatever multiplies: slices, reads and stores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


def owners_of_tiles(sizes: jax.Array, count: int, tall: int) -> jax.Array:
    """The expert of every tile of rows; the number of experts where it has none."""
    firsts = jnp.arange(pl.cdiv(count, tall)) * tall
    return jnp.searchsorted(jnp.cumsum(sizes), firsts, side="right").astype(jnp.int32)


def slices_of_dot(row: Any, column: Any, tile: Sequence[int], transposed: bool) -> tuple[Any, Any]:
    """Which slices of rows and of one expert's weights a tile of their product is made of."""
    tall, wide, deep, _ = tile
    of_weights = plgpu.BlockSpec(
        (wide, deep) if transposed else (deep, wide),
        lambda k: (column, k) if transposed else (k, column),
        delay_release=1,
    )
    return plgpu.BlockSpec((tall, deep), lambda k: (row, k), delay_release=1), of_weights


def slices_of_outer(first: Any, row: Any, column: Any, tile: Sequence[int]) -> tuple[Any, Any]:
    """Which slices of two operands' rows, from `first` on, a tile of their sum is made of."""
    tall, wide, deep, _ = tile
    return (
        plgpu.BlockSpec((deep, tall), lambda k: (first + k, row), delay_release=1),
        plgpu.BlockSpec((deep, wide), lambda k: (first + k, column), delay_release=1),
    )


def launch(
    body: Callable[..., None],
    results: Any,
    axes: Mapping[str, int],
    operands: Sequence[jax.Array],
    *,
    scratch: Sequence[Any] = (),
    interpret: bool = False,
) -> Any:
    """Runs a kernel on a grid with named axes, by Warpgroup lowering semantics."""
    return plgpu.kernel(
        body,
        out_type=results,
        scratch_types=scratch,
        grid=tuple(axes.values()),
        grid_names=tuple(axes),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpreter() if interpret else False,
    )(*operands)


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
