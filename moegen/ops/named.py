"""Arithmetic of named dims: joining, aligning and broadcasting arrays by dim name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from moegen.errors import DimError, DtypeError, ShapeError, did_you_mean
from moegen.ir.program import Literal
from moegen.ir.types import Route, Tensor, Type

JAX_DTYPES: dict[str, Any] = {
    "f64": jnp.float64,
    "f32": jnp.float32,
    "bf16": jnp.bfloat16,
    "f16": jnp.float16,
    "i32": jnp.int32,
    "i8": jnp.int8,
    "u8": jnp.uint8,
    "u32": jnp.uint32,
    "f8e4m3": jnp.float8_e4m3fn,
    "bool": jnp.bool_,
}
_NAMES = {np.dtype(v): k for k, v in JAX_DTYPES.items()}


def dtype_name(dtype: Any) -> str:
    """Returns the IR's name of a numpy dtype, such as "f32"."""
    found = _NAMES.get(np.dtype(dtype))
    if found is None:
        raise DtypeError(
            f"dtype {np.dtype(dtype)} is not supported",
            fix=f"convert to one of {', '.join(JAX_DTYPES)}",
        )
    return found


def tensor(type_: Type | Literal, what: str = "operand") -> Tensor:
    """Returns the type as a tensor type, or says what it is instead."""
    if not isinstance(type_, Tensor):
        raise ShapeError(f"{what} must be a tensor, not {type_}")
    return type_


def route(type_: Type | Literal) -> Route:
    """Returns the type as a route type, or says what it is instead."""
    if not isinstance(type_, Route):
        raise ShapeError(f"the first operand must be a route, not {type_}")
    return type_


def dims_tuple(over: str | Sequence[str]) -> tuple[str, ...]:
    """Accepts one dim name or several ("E", "S E", ("S", "E")) and returns a tuple."""
    return tuple(over.split()) if isinstance(over, str) else tuple(over)


def require_dims(type_: Tensor, over: tuple[str, ...]) -> None:
    """Raises a DimError when a dim is not one of the tensor's, or is named twice."""
    for dim in over:
        if over.count(dim) > 1:
            raise DimError(f'the dim "{dim}" is named twice', fix="name every dim once")
        if dim not in type_.dims:
            raise DimError(
                f'no dim "{dim}" in {type_}{did_you_mean(dim, type_.dims)}',
                fix=f"use one of {', '.join(type_.dims)}",
            )


def require_numbers(type_: Tensor) -> None:
    """Raises a DtypeError for bools and f8e4m3, which have no arithmetic."""
    fixes = {"bool": "i32", "f8e4m3": "f32"}
    if type_.dtype in fixes:
        fix = f'convert first: mg.cast(x, "{fixes[type_.dtype]}")'
        raise DtypeError(f"needs numbers, got {type_}", fix=fix)


def join_dims(*all_dims: tuple[str, ...]) -> tuple[str, ...]:
    """Dims of a broadcast result: those of the longest operand, then any others in order."""
    base = max(all_dims, key=len, default=())
    extra = dict.fromkeys(d for dims in all_dims for d in dims if d not in base)
    return (*base, *extra)


def join_types(*types: Type | Literal) -> Tensor:
    """Type of an elementwise result; dtypes must agree, literals adapt."""
    tensors = [tensor(t) for t in types if not isinstance(t, Literal)]
    if not tensors:
        raise ShapeError("at least one operand must be a tensor, all are numbers")
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1:
        raise DtypeError(
            f"dtypes do not match: {', '.join(t.dtype for t in tensors)}",
            fix=f'convert one side, for example mg.cast(x, "{tensors[0].dtype}")',
        )
    for literal in types:
        if isinstance(literal, Literal) and isinstance(literal.value, float):
            _require_float(tensors[0], literal)
    return Tensor(tensors[0].dtype, join_dims(*(t.dims for t in tensors)))


def _require_float(type_: Tensor, literal: Literal) -> None:
    if not type_.is_float:
        raise DtypeError(
            f"the number {literal} does not fit {type_}",
            fix='convert first: mg.cast(x, "f32")',
        )


def align(array: Any, have: tuple[str, ...], want: tuple[str, ...]) -> Any:
    """Transposes and expands an array so that it broadcasts against dims `want`."""
    if not have:
        return array
    order = [have.index(d) for d in want if d in have]
    index = tuple(slice(None) if d in have else None for d in want)
    return jnp.transpose(array, order)[index]


def axes(type_: Tensor, over: tuple[str, ...]) -> tuple[int, ...]:
    """Positions of dims in a tensor."""
    return tuple(type_.dims.index(d) for d in over)
