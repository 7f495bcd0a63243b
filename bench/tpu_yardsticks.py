"""megablox, the grouped product that comes with JAX, as programs to compile for a TPU."""

import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.tune.cases import Case


def dot(
    rows: int, depth: int, width: int, experts: int, tile: Sequence[int], visits: int,
    transposed: bool = False,
) -> Case:  # fmt: skip
    """Its forward, or the product with transposed weights, with a fixed number of visits."""
    weights = (experts, width, depth) if transposed else (experts, depth, width)
    kernel = _megablox()

    def call(x: Any, w: Any, sizes: Any, *lists: Any) -> Any:
        _fix(kernel, visits, lists)
        return kernel.gmm(x, w, sizes, jnp.bfloat16, tuple(tile), transpose_rhs=transposed)

    return call, [_struct((rows, depth)), _struct(weights), *_lists(experts, visits)]


def outer(
    rows: int, depth: int, width: int, experts: int, tile: Sequence[int], visits: int
) -> Case:
    """Its gradient of the weights, with a fixed number of visits.

    The compiler's estimate takes a branch as if the data were zeros, and this kernel's product
    stands behind one: that the expert has rows is said here. Its other two, that start and store
    an expert's total, then read as not taken, so that the estimate is less than it needs.
    """
    kernel = _megablox()
    kernel._get_group_size = lambda **_: 1

    def call(a: Any, b: Any, sizes: Any, *lists: Any) -> Any:
        _fix(kernel, visits, lists)
        return kernel.tgmm(a.swapaxes(0, 1), b, sizes, jnp.bfloat16, tuple(tile))

    return call, [_struct((rows, depth)), _struct((rows, width)), *_lists(experts, visits)]


def _megablox() -> Any:
    return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")


def _fix(kernel: Any, visits: int, lists: Any) -> None:
    """Gives the kernel its schedule, so that the compiler sees how many steps there are."""
    offsets, groups, tiles = lists
    kernel.make_group_metadata = lambda **_: ((offsets, groups, tiles), visits)


def _lists(experts: int, visits: int) -> list[jax.ShapeDtypeStruct]:
    counts = [(experts,), (experts + 1,), (visits,), (visits,)]
    return [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in counts]


def _struct(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)
