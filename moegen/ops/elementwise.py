"""Ops on each element alone: arithmetic, activations, comparisons, selection, casts.

Each is one row: its jnp meaning and its derivative. Operands broadcast by dim name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DtypeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op, Operand, Value
from moegen.ir.registry import Eval, OpDef, add, register
from moegen.ir.types import DTYPES, Tensor, Type, cotangent_type
from moegen.ops.named import JAX_DTYPES, align, join_types, require_numbers, tensor

SQRT_2_OVER_PI = 0.7978845608028654
INV_SQRT_2 = 0.7071067811865476
INV_SQRT_2PI = 0.3989422804014327
GELU_CUBIC = 0.044715

Partial = Callable[..., Any]

_LINEAR: dict[str, tuple[tuple[int, ...], ...]] = {
    "neg": ((0,),),
    "stop_gradient": ((0,),),
    "add": ((0, 1),),
    "sub": ((0, 1),),
    "mul": ((0,), (1,)),
    "div": ((0,),),
}
"""Sets of operands in which an op is linear: all of a set together, the others fixed."""


class Elementwise(OpDef):
    """An op given by a jnp function and one partial derivative per operand.

    `takes` says which dtypes: "any", "numbers", "floats" or "bools".
    A partial is called with the builder, the op and the cotangent, and returns the
    cotangent of its operand before broadcasting is undone; None stands for no gradient.
    """

    elementwise = True

    def __init__(
        self,
        name: str,
        fn: Callable[..., Any],
        partials: tuple[Partial | None, ...] | None,
        *,
        dtype: str | None = None,
        takes: str = "any",
    ):
        self.name = name
        self._fn = fn
        self._partials = partials
        self._dtype = dtype
        self._takes = takes
        self.arity = (len(partials), len(partials)) if partials else (1, 1)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        joined = join_types(*operands)
        if self._takes == "floats" and not joined.is_float:
            raise DtypeError(
                f"needs real numbers, got {joined}", fix='convert first: mg.cast(x, "f32")'
            )
        if self._takes == "numbers":
            require_numbers(joined)
        if self._takes == "bools" and joined.dtype != "bool":
            raise DtypeError(f"needs bool, got {joined}", fix="compare first, for example x > 0")
        return (Tensor(self._dtype or joined.dtype, joined.dims),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(linear=_LINEAR.get(self.name, ()))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return self._fn(*aligned(env.op, arrays), **attrs)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        if self._partials is None:
            return super().derive(b, op, *cotangents)
        (ct,) = cotangents
        grads = []
        for operand, partial in zip(op.operands, self._partials, strict=True):
            wanted = isinstance(operand, Value) and cotangent_type(operand.type)
            grad = partial(b, op, ct) if partial and wanted else None
            grads.append(b.fit(grad, wanted) if grad is not None and wanted else None)
        return tuple(grads)


def aligned(op: Op, arrays: tuple[Any, ...]) -> list[Any]:
    """Aligns an elementwise op's arrays by name with its result."""
    want = tensor(op.results[0].type).dims
    return [
        align(a, tensor(o.type).dims, want) if isinstance(o, Value) else a
        for o, a in zip(op.operands, arrays, strict=True)
    ]


def _mul(b: Builder, *operands: Operand | float) -> Value:
    return b.one("mul", *operands)


def _times(name: str) -> Partial:
    """Partial of a unary op whose derivative is another unary op of the same input."""
    return lambda b, op, ct: _mul(b, ct, b.one(name, op.operands[0]))


def _gelu_grad(x: Any) -> Any:
    inner = SQRT_2_OVER_PI * (x + GELU_CUBIC * x**3)
    t = jnp.tanh(inner)
    slope = SQRT_2_OVER_PI * (1 + 3 * GELU_CUBIC * x**2)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope


def _silu_grad(x: Any) -> Any:
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


_UNARY: tuple[tuple[str, Callable[..., Any], Partial | None], ...] = (
    ("neg", jnp.negative, lambda b, op, ct: b.one("neg", ct)),
    ("exp", jnp.exp, lambda b, op, ct: _mul(b, ct, op.result)),
    ("log", jnp.log, lambda b, op, ct: b.one("div", ct, op.operands[0])),
    (
        "tanh",
        jnp.tanh,
        lambda b, op, ct: _mul(b, ct, b.one("sub", 1.0, b.one("square", op.result))),
    ),
    ("erf", jax.scipy.special.erf, None),
    ("sqrt", jnp.sqrt, lambda b, op, ct: b.one("div", _mul(b, ct, 0.5), op.result)),
    (
        "rsqrt",
        jax.lax.rsqrt,
        lambda b, op, ct: _mul(b, ct, b.one("div", _mul(b, op.result, -0.5), op.operands[0])),
    ),
    ("square", jnp.square, lambda b, op, ct: _mul(b, _mul(b, ct, 2.0), op.operands[0])),
    (
        "abs",  # at 0, JAX's derivative is 1
        jnp.abs,
        lambda b, op, ct: b.one("select", b.one("ge", op.operands[0], 0.0), ct, b.one("neg", ct)),
    ),
    (
        "relu",
        jax.nn.relu,
        lambda b, op, ct: b.one("select", b.one("gt", op.operands[0], 0.0), ct, 0.0),
    ),
    ("gelu", lambda x: jax.nn.gelu(x, approximate=True), _times("gelu_grad")),
    ("silu", jax.nn.silu, _times("silu_grad")),
    ("sigmoid", jax.nn.sigmoid, _times("sigmoid_grad")),
    ("softplus", jax.nn.softplus, _times("sigmoid")),
    ("normal_cdf", jax.scipy.stats.norm.cdf, _times("normal_pdf")),
)
_ONLY_IN_DERIVATIVES: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("gelu_grad", _gelu_grad),
    ("silu_grad", _silu_grad),
    ("sigmoid_grad", lambda x: jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x))),
    ("normal_pdf", lambda x: INV_SQRT_2PI * jnp.exp(-0.5 * x * x)),
)
_COMPARISONS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("eq", jnp.equal),
    ("ne", jnp.not_equal),
    ("lt", jnp.less),
    ("le", jnp.less_equal),
    ("gt", jnp.greater),
    ("ge", jnp.greater_equal),
)


def _erf_partial(b: Builder, op: Op, ct: Value) -> Value:
    gauss = b.one("exp", b.one("neg", b.one("square", op.operands[0])))
    return _mul(b, ct, _mul(b, gauss, 2.0 * SQRT_2_OVER_PI * INV_SQRT_2))


def _pass(b: Builder, op: Op, ct: Value) -> Value:
    return ct


def _chosen(compare: str, side: int) -> Partial:
    """Partial of max/min: the winner takes the cotangent, equal operands take half each."""

    def partial(b: Builder, op: Op, ct: Value) -> Value:
        mine, other = op.operands[side], op.operands[1 - side]
        wins = b.one("select", b.one(compare, mine, other), ct, 0.0)
        return b.one("select", b.one("eq", mine, other), _mul(b, ct, 0.5), wins)

    return partial


def _quotient(b: Builder, op: Op, ct: Value) -> Value:
    return b.one("neg", b.one("div", _mul(b, ct, op.result), op.operands[1]))


_BINARY: tuple[tuple[str, Callable[..., Any], tuple[Partial, Partial]], ...] = (
    ("add", jnp.add, (_pass, _pass)),
    ("sub", jnp.subtract, (_pass, lambda b, op, ct: b.one("neg", ct))),
    (
        "mul",
        jnp.multiply,
        (
            lambda b, op, ct: _mul(b, ct, op.operands[1]),
            lambda b, op, ct: _mul(b, ct, op.operands[0]),
        ),
    ),
    ("div", jnp.divide, (lambda b, op, ct: b.one("div", ct, op.operands[1]), _quotient)),
    ("maximum", jnp.maximum, (_chosen("gt", 0), _chosen("gt", 1))),
    ("minimum", jnp.minimum, (_chosen("lt", 0), _chosen("lt", 1))),
)

for _name, _fn, _partial in _UNARY:
    _known = _erf_partial if _name == "erf" else _partial
    _takes = "numbers" if _name in ("neg", "abs", "square") else "floats"
    add(Elementwise(_name, _fn, (_known,), takes=_takes))
for _name, _fn in _ONLY_IN_DERIVATIVES:
    add(Elementwise(_name, _fn, None, takes="floats"))
for _name, _fn, _partials in _BINARY:
    add(Elementwise(_name, _fn, _partials, takes="floats" if _name == "div" else "numbers"))
for _name, _fn in _COMPARISONS:
    add(Elementwise(_name, _fn, (None, None), dtype="bool"))
for _name, _fn, _arity in (
    ("logical_not", jnp.logical_not, 1),
    ("logical_and", jnp.logical_and, 2),
    ("logical_or", jnp.logical_or, 2),
):
    add(Elementwise(_name, _fn, (None,) * _arity, takes="bools"))
add(Elementwise("mod", jnp.remainder, (None, None), takes="numbers"))
add(Elementwise("stop_gradient", jax.lax.stop_gradient, (None,)))


@register
class Select(OpDef):
    """`select(condition, a, b)`: a where the condition holds, else b."""

    name = "select"
    arity = (3, 3)
    elementwise = True

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        condition, *branches = operands
        if tensor(condition, "the condition").dtype != "bool":
            raise DtypeError(f"the condition must be bool, got {condition}", fix="compare first")
        joined = join_types(*branches)
        both = join_types(Tensor(joined.dtype, tensor(condition).dims), joined)
        return (both,)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        zero = [i for i, o in enumerate(operands) if isinstance(o, Literal) and o.value == 0]
        return locality(linear=((1, 2), *((3 - i,) for i in zero)))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        condition, a, b = aligned(env.op, arrays)
        dtype = JAX_DTYPES[tensor(env.op.result.type).dtype]
        return jnp.where(condition, jnp.asarray(a, dtype), jnp.asarray(b, dtype))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        condition, *branches = op.operands
        (ct,) = cotangents
        grads: list[Value | None] = [None]
        for side, branch in enumerate(branches):
            wanted = isinstance(branch, Value) and cotangent_type(branch.type)
            picked = (ct, 0.0) if side == 0 else (0.0, ct)
            grads.append(b.fit(b.one("select", condition, *picked), wanted) if wanted else None)
        return tuple(grads)


@register
class Cast(OpDef):
    """`cast(x, dtype="f32")`: converts elements; gradients are converted back."""

    name = "cast"
    attributes = ("dtype",)
    elementwise = True

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        (x,) = operands
        if attrs["dtype"] not in DTYPES:
            raise DtypeError(f'no dtype "{attrs["dtype"]}"', fix=f"use one of {', '.join(DTYPES)}")
        return (Tensor(attrs["dtype"], tensor(x).dims),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality()

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.asarray(arrays[0]).astype(JAX_DTYPES[attrs["dtype"]])

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        (x,) = op.inputs
        wanted, (ct,) = cotangent_type(x.type), cotangents
        return (b.fit(ct, wanted) if wanted and ct is not None else None,)
