"""`dot`: contraction over named dims, and the only matrix product of the IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from moegen.errors import DtypeError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import FLOATS, NARROW, Tensor, Type, cotangent_type
from moegen.ops.epilogue import infer_epilogue, run_epilogue
from moegen.ops.named import JAX_DTYPES, dims_tuple, require_dims, tensor


def dot_dims(a: Tensor, b: Tensor, over: tuple[str, ...]) -> tuple[str, ...]:
    """Dims of a dot: a's, then b's own, without those summed; shared dims are batch dims."""
    return tuple(d for d in dict.fromkeys((*a.dims, *b.dims)) if d not in over)


def einsum_spec(a: tuple[str, ...], b: tuple[str, ...], out: tuple[str, ...]) -> str:
    """Writes an einsum over named dims; one-letter names keep their letter."""
    names = tuple(dict.fromkeys((*a, *b)))
    free = iter(c for c in "abcdefghijklmnopqrstuvwxyz" if c not in names)
    letter = {n: n if len(n) == 1 and n.isalpha() else next(free) for n in names}
    a_, b_, out_ = ("".join(letter[n] for n in dims) for dims in (a, b, out))
    return f"{a_},{b_}->{out_}"


def with_epilogue(
    dims: Dims, acc: Tensor, extra: Sequence[Any], attrs: dict[str, Any]
) -> tuple[Type, ...]:
    """Result types of a product: its own, or those of its epilogue."""
    if "epilogue" in attrs:
        return infer_epilogue(dims, attrs["epilogue"], acc, extra)
    if extra:
        raise ShapeError(f"has {len(extra)} more operands than it reads")
    return (acc,)


def apply_epilogue(
    env: Eval, product: Any, acc: Tensor, extra: Sequence[Any], types: Sequence[Tensor]
) -> Any:
    """The product itself, or the results of its epilogue."""
    if "epilogue" not in env.op.attr:
        return product
    return run_epilogue(env.sizes, env.op.attr["epilogue"], product, acc, extra, types)


def product_dtype(a: Tensor, b: Tensor) -> str:
    """The dtype of a product: that of both operands, or of the other one where one is narrow.

    Raises:
      DtypeError: for any other two.
    """
    real = [t.dtype for t in (a, b) if t.dtype not in NARROW]
    if len(set(real)) == 1 and real[0] in FLOATS:
        return real[0]
    raise DtypeError(
        f"needs two tensors of one real dtype, got {a.dtype} and {b.dtype}",
        fix=f'convert one side, for example mg.cast(b, "{a.dtype}")',
    )


@register
class Dot(OpDef):
    """`dot(a, b, over="D")`: sum of products over dims that both operands have.

    Other shared dims are batch dims. `out` fixes the order of the result's dims. With an
    `epilogue`, further operands are c0, c1, ... of its expressions (see `ops/epilogue.py`).
    One operand may be narrow, i8 or f8e4m3: its numbers are converted to the other's dtype.
    """

    name = "dot"
    attributes = ("over", "out", "epilogue", "block", "kernel", "tile", "source")
    arity = (2, None)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        a, b = (tensor(o) for o in operands[:2])
        over = dims_tuple(attrs["over"])
        require_dims(a, over)
        require_dims(b, over)
        dtype = product_dtype(a, b)
        natural = dot_dims(a, b, over)
        out = tuple(attrs.get("out", natural))
        if sorted(out) != sorted(natural):
            raise ShapeError(f"out={out} does not list the result's dims {natural}")
        return with_epilogue(dims, Tensor(dtype, out), operands[2:], attrs)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        over = dims_tuple(attrs["over"])
        if "epilogue" in attrs:  # it may be anything but linear
            return locality(whole=over)
        return locality(summed=over, linear=((0,), (1,)))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        a, b, *extra = (tensor(v.type) for v in env.op.inputs)
        acc = Tensor(product_dtype(a, b), tensor(env.op.results[0].type).dims)
        wide = [array.astype(JAX_DTYPES[acc.dtype]) for array in arrays[:2]]
        product = jnp.einsum(einsum_spec(a.dims, b.dims, acc.dims), *wide)
        return apply_epilogue(env, product, acc, arrays[2:], extra)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        (ct,) = cotangents
        x, y = op.inputs
        return tuple(
            _adjoint(b, ct, other, cotangent_type(mine.type)) for mine, other in ((x, y), (y, x))
        )


def _adjoint(b: Builder, ct: Any, other: Any, wanted: Tensor | None) -> Any:
    """The adjoint of a dot is a dot: sum out all that the wanted operand does not have."""
    if wanted is None:
        return None
    joined = dict.fromkeys((*tensor(ct.type).dims, *tensor(other.type).dims))
    over = tuple(d for d in joined if d not in wanted.dims)
    return b.one("dot", ct, other, over=over, out=wanted.dims)
