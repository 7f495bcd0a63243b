"""Products over sorted rows: each row meets the weights of its own expert.

`sizes` is i32[E], the number of rows of each expert, in order; rows past their sum belong
to no expert. Meanings are one-hot products; `moegen/kernels/grouped_dot` has what runs.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from moegen.errors import ShapeError
from moegen.ir.dims import Dims
from moegen.ir.program import Literal
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import EXPERT, Tensor, Type
from moegen.ops.linalg import apply_epilogue, dot_dims, einsum_spec, with_epilogue
from moegen.ops.named import align, dims_tuple, tensor
from moegen.ops.rows import ROWS


def owner_mask(sizes: Any, rows: int, dtype: Any) -> Any:
    """One-hot [N, E]: which expert owns each row; all 0 past the last owned row."""
    ends = jnp.cumsum(sizes)
    at = jnp.arange(rows)[:, None]
    return ((at >= ends - sizes) & (at < ends)).astype(dtype)


def _mask(env: Eval, sizes: Any, dtype: Any) -> Any:
    return owner_mask(sizes, env.sizes[ROWS], dtype)


@register
class GroupedDot(OpDef):
    """`grouped_dot(rows, w, sizes, over="D")`: rows[N, D] times w[E, D, F] of each row's expert."""

    name = "grouped_dot"
    attributes = ("over", "out", "epilogue", "block", "kernel", "tile", "source")
    arity = (3, None)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        rows, w = tensor(operands[0]), tensor(operands[1])
        if ROWS not in rows.dims or EXPERT not in w.dims or ROWS in w.dims:
            raise ShapeError(
                f"needs rows [{ROWS}, ...] and weights [{EXPERT}, ...], got {rows}, {w}"
            )
        over = dims_tuple(attrs["over"])
        natural = tuple(d for d in dot_dims(rows, w, over) if d != EXPERT)
        acc = Tensor(rows.dtype, tuple(attrs.get("out", natural)))
        return with_epilogue(dims, acc, operands[3:], attrs)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        rows, w, sizes, *extra = arrays
        types = [tensor(v.type) for v in env.op.inputs]
        a, b = types[0].dims, types[1].dims
        mask = _mask(env, sizes, rows.dtype)
        spread = jnp.einsum(einsum_spec(a, (ROWS, EXPERT), (*a, EXPERT)), rows, mask)
        acc = Tensor(types[0].dtype, tensor(env.op.results[0].type).dims)
        product = jnp.einsum(einsum_spec((*a, EXPERT), b, acc.dims), spread, w)
        return apply_epilogue(env, product, acc, extra, types[3:])


@register
class GroupedOuter(OpDef):
    """`grouped_outer(a, b, sizes)`: per expert, the sum over its rows of a[N, D] b[N, F]."""

    name = "grouped_outer"
    attributes = ("out", "block", "kernel", "tile", "source")
    arity = (3, 3)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        a, b = tensor(operands[0]), tensor(operands[1])
        if ROWS not in a.dims or ROWS not in b.dims:
            raise ShapeError(f"needs two row tensors [{ROWS}, ...], got {a}, {b}")
        return (Tensor(a.dtype, tuple(attrs["out"])),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        a, b, sizes = arrays
        da, db = (tensor(v.type).dims for v in env.op.inputs[:2])
        mask = _mask(env, sizes, a.dtype)
        spread = jnp.einsum(einsum_spec(da, (ROWS, EXPERT), (*da, EXPERT)), a, mask)
        return jnp.einsum(einsum_spec((*da, EXPERT), db, tuple(attrs["out"])), spread, b)


@register
class GroupedSum(OpDef):
    """`grouped_sum(a, sizes)`: per expert, the sum of its rows: [N, F] to [E, F]."""

    name = "grouped_sum"
    attributes = ("block", "kernel", "tile", "source")
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        a = tensor(operands[0])
        if a.dims[:1] != (ROWS,):
            raise ShapeError(f"needs rows [{ROWS}, ...], got {a}")
        return (Tensor(a.dtype, (EXPERT, *a.dims[1:])),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        a, sizes = arrays
        return jnp.einsum("ne,n...->e...", _mask(env, sizes, a.dtype), a)


@register
class PerRow(OpDef):
    """`per_row(b, sizes)`: each row's copy of its expert's b[E, ...]: [N, ...]."""

    name = "per_row"
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        b = tensor(operands[0])
        if EXPERT not in b.dims:
            raise ShapeError(f"needs [{EXPERT}, ...], got {b}")
        return (Tensor(b.dtype, (ROWS, *(d for d in b.dims if d != EXPERT))),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        b, sizes = arrays
        dims = tensor(env.op.inputs[0].type).dims
        lead = (EXPERT, *(d for d in dims if d != EXPERT))
        mask = _mask(env, sizes, b.dtype)
        return jnp.einsum("ne,e...->n...", mask, align(b, dims, lead))
