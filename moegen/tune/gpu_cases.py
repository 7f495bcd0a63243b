"""Programs to compile for GPUs: each kernel for a shape, as a function and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.kernels.grouped_dot.pallas_gpu import grouped_dot_gpu, grouped_outer_gpu
from moegen.kernels.grouped_dot.pallas_tcgen05 import grouped_dot_tcgen05, grouped_outer_tcgen05
from moegen.kernels.grouped_dot.pallas_triton import grouped_dot_triton, grouped_outer_triton

Case = tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]
DOTS: dict[str, Callable[..., Any]] = {
    "pallas_gpu": grouped_dot_gpu,
    "pallas_tcgen05": grouped_dot_tcgen05,
    "pallas_triton": grouped_dot_triton,
}
OUTERS: dict[str, Callable[..., Any]] = {
    "pallas_gpu": grouped_outer_gpu,
    "pallas_tcgen05": grouped_outer_tcgen05,
    "pallas_triton": grouped_outer_triton,
}
EPILOGUES: dict[str, tuple[tuple[str, ...], int, Callable[..., tuple[jax.Array, ...]]]] = {
    "kept gelu": ((), 2, lambda acc: (acc, jax.nn.gelu(acc))),
    "bias": (("column",), 1, lambda acc, c0: (jax.nn.gelu(acc + c0),)),
    "gate": (("row",), 1, lambda acc, c0: (acc * jax.nn.silu(c0),)),
}
"""By name: whether an operand it reads has a row for each row, its results, what it computes."""


def dot(
    kernel: str,
    rows: int,
    depth: int,
    width: int,
    experts: int,
    tile: Sequence[int],
    dtype: str = "bfloat16",
    transposed: bool = False,
    epilogue: str = "",
) -> Case:
    """The grouped product: forward, or by transposed weights."""
    weights = (experts, width, depth) if transposed else (experts, depth, width)
    settings: dict[str, Any] = {"tile": tuple(tile), "transposed": transposed}
    extra = []
    if epilogue:
        shapes, results, function = EPILOGUES[epilogue]
        settings |= {"epilogue": function, "dtypes": (dtype,) * results}
        extra = [_struct((rows if kind == "row" else 1, width), dtype) for kind in shapes]

    def call(x: Any, w: Any, sizes: Any, *extra: Any) -> Any:
        return DOTS[kernel](x, w, sizes, *extra, **settings)

    sizes = _struct((experts,), "int32")
    return call, [_struct((rows, depth), dtype), _struct(weights, dtype), sizes, *extra]


def outer(
    kernel: str,
    rows: int,
    depth: int,
    width: int,
    experts: int,
    tile: Sequence[int],
    dtype: str = "bfloat16",
) -> Case:
    """The gradient of the weights."""

    def call(a: Any, b: Any, sizes: Any) -> Any:
        return OUTERS[kernel](a, b, sizes, tile=tuple(tile))

    sizes = _struct((experts,), "int32")
    return call, [_struct((rows, depth), dtype), _struct((rows, width), dtype), sizes]


def _struct(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
