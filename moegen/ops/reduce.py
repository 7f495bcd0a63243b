"""Ops along named dims: sums, maxima, softmax, running sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DtypeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import Tensor, Type, cotangent_type
from moegen.ops.named import axes, dims_tuple, require_dims, require_numbers, tensor


class Reduction(OpDef):
    """Base of ops that remove the dims in `over`."""

    floats = False

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, over = _operand(operands, attrs, self.floats)
        return (Tensor(x.dtype, tuple(d for d in x.dims if d not in over)),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=dims_tuple(attrs["over"]))


class Along(OpDef):
    """Base of ops that work along `over` and keep every dim."""

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, _ = _operand(operands, attrs, floats=True)
        return (x,)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=dims_tuple(attrs["over"]))


def _operand(
    operands: tuple[Any, ...], attrs: dict[str, Any], floats: bool
) -> tuple[Tensor, tuple[str, ...]]:
    x, over = tensor(operands[0]), dims_tuple(attrs["over"])
    require_dims(x, over)
    if floats and not x.is_float:
        raise DtypeError(f"needs real numbers, got {x}", fix='convert first: mg.cast(x, "f32")')
    return x, over


def _axes(env: Eval, over: Any) -> tuple[int, ...]:
    return axes(tensor(env.op.inputs[0].type), dims_tuple(over))


@register
class Sum(Reduction):
    """`sum(x, over="S")`."""

    name = "sum"
    attributes = ("over",)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        require_numbers(tensor(operands[0]))
        return super().infer(dims, *operands, **attrs)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(summed=dims_tuple(attrs["over"]), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.sum(arrays[0], axis=_axes(env, attrs["over"]), dtype=arrays[0].dtype)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        wanted = cotangent_type(op.inputs[0].type)
        return (b.fit(cotangents[0], wanted) if wanted else None,)


@register
class Mean(Reduction):
    """`mean(x, over="S")`: the sum divided by the number of elements."""

    name = "mean"
    attributes = ("over",)
    floats = True

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=dims_tuple(attrs["over"]), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.mean(arrays[0], axis=_axes(env, attrs["over"]))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        x = tensor(op.inputs[0].type)
        count = 1
        for size in b.dims.shape(dims_tuple(op.attr["over"])):
            count *= size
        share = b.one("mul", cotangents[0], 1.0 / max(count, 1))
        return (b.fit(share, x),)


class _Extreme(Reduction):
    """Maximum or minimum; equal winners share the cotangent."""

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        wanted = cotangent_type(op.inputs[0].type)
        if wanted is None:
            return (None,)
        wins = b.one("cast", b.one("eq", op.inputs[0], op.result), dtype=wanted.dtype)
        count = b.one("sum", wins, over=op.attr["over"])
        share = b.one("div", cotangents[0], count)
        return (b.fit(b.one("mul", wins, share), wanted),)


@register
class Max(_Extreme):
    """`max(x, over="E")`."""

    name = "max"
    attributes = ("over",)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.max(arrays[0], axis=_axes(env, attrs["over"]))


@register
class Min(_Extreme):
    """`min(x, over="E")`."""

    name = "min"
    attributes = ("over",)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.min(arrays[0], axis=_axes(env, attrs["over"]))


@register
class Argmax(OpDef):
    """`argmax(x, over="E")`: index of the largest element, the lowest index on ties."""

    name = "argmax"
    attributes = ("over",)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, over = _operand(operands, attrs, floats=False)
        (dim,) = over
        return (Tensor("i32", tuple(d for d in x.dims if d != dim)),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=dims_tuple(attrs["over"]))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.argmax(arrays[0], axis=_axes(env, attrs["over"])[0]).astype(jnp.int32)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (None,)


@register
class Softmax(Along):
    """`softmax(x, over="E")`: exp(x) normalised to sum 1 over the dims."""

    name = "softmax"
    attributes = ("over",)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jax.nn.softmax(arrays[0], axis=_axes(env, attrs["over"]))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        (ct,) = cotangents
        inner = b.one("sum", b.one("mul", ct, op.result), over=op.attr["over"])
        return (b.one("mul", op.result, b.one("sub", ct, inner)),)


@register
class LogSumExp(Reduction):
    """`logsumexp(x, over="E")`: log of the sum of exponentials."""

    name = "logsumexp"
    attributes = ("over",)
    floats = True

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jax.nn.logsumexp(arrays[0], axis=_axes(env, attrs["over"]))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        share = b.one("softmax", op.operands[0], over=op.attr["over"])
        return (b.one("mul", share, cotangents[0]),)


@register
class Cumsum(Along):
    """`cumsum(x, over="S")`: running sum along one dim; `reverse=True` from the end."""

    name = "cumsum"
    attributes = ("over", "reverse")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, (_,) = _operand(operands, attrs, floats=False)
        require_numbers(x)
        return (x,)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        (axis,) = _axes(env, attrs["over"])
        x = jnp.flip(arrays[0], axis) if attrs.get("reverse") else arrays[0]
        total = jnp.cumsum(x, axis=axis, dtype=x.dtype)
        return jnp.flip(total, axis) if attrs.get("reverse") else total

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        if cotangent_type(op.inputs[0].type) is None:
            return (None,)
        reverse = None if op.attr.get("reverse") else True
        return (b.one("cumsum", cotangents[0], over=op.attr["over"], reverse=reverse),)
