"""Programs to compile for GPUs: each kernel for a shape, as a function and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from moegen.kernels.grouped_dot.pallas_gpu import grouped_dot_gpu, grouped_outer_gpu
from moegen.kernels.grouped_dot.pallas_tcgen05 import grouped_dot_tcgen05, grouped_outer_tcgen05
from moegen.kernels.grouped_dot.pallas_triton import grouped_dot_triton, grouped_outer_triton
from moegen.tune.cases import Case, fused, struct

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
    extra: list[jax.ShapeDtypeStruct] = []
    if epilogue:
        told, extra = fused(epilogue, rows, width, experts, dtype)
        settings |= told

    def call(x: Any, w: Any, sizes: Any, *extra: Any) -> Any:
        return DOTS[kernel](x, w, sizes, *extra, **settings)

    sizes = struct((experts,), "int32")
    return call, [struct((rows, depth), dtype), struct(weights, dtype), sizes, *extra]


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

    sizes = struct((experts,), "int32")
    return call, [struct((rows, depth), dtype), struct((rows, width), dtype), sizes]
