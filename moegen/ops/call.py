"""`call`: any JAX function as one opaque op, differentiated by jax.vjp."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import LoweringError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, dims_of, locality
from moegen.ir.program import Literal, Op, Value
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import Tensor, Type, cotangent_type
from moegen.ops.named import JAX_DTYPES, align, dtype_name, tensor

_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def remember(fn: Callable[..., Any]) -> str:
    """Returns the name under which a function stands in programs: "module:qualname".

    Two different functions never share a name: a number is added to later ones.
    """
    base = f"{getattr(fn, '__module__', '?')}:{getattr(fn, '__qualname__', repr(fn))}"
    name, n = base, 1
    while _FUNCTIONS.setdefault(name, fn) is not fn:
        n += 1
        name = f"{base}#{n}"
    return name


def resolve(name: str) -> Callable[..., Any]:
    """Finds the function of a `call`: one seen in this process, or an importable one."""
    if name not in _FUNCTIONS:
        module, _, qualname = name.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in qualname.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError):
            raise LoweringError(
                f'function "{name}" cannot be found',
                fix="import the module that defines it before parsing the program",
            ) from None
        _FUNCTIONS[name] = found
    return _FUNCTIONS[name]


def batched(fn: Callable[..., Any], types: tuple[Tensor, ...], batch: tuple[str, ...]) -> Any:
    """Maps fn over the batch dims, outermost first; operands without one are shared."""
    for dim in reversed(batch):
        in_axes = tuple(0 if dim in t.dims else None for t in types)
        fn = jax.vmap(fn, in_axes=in_axes) if 0 in in_axes else fn
    return fn


@register
class Call(OpDef):
    """`call(args..., fn="module:name", batch=("G",), dims=("G", "S", "E"), dtype="f32")`.

    The function sees arrays without the batch dims, in the order of the remaining dims, and
    returns one array of the declared remaining dims. `settings=(("k", 2),)` are keyword
    arguments for it.
    """

    name = "call"
    attributes = ("fn", "batch", "dims", "dtype", "settings")
    arity = (0, None)
    opaque = True

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        result = Tensor(attrs["dtype"], tuple(attrs["dims"]))
        _check_result(dims, operands, attrs, result)
        return (result,)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=_inside(operands, attrs))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        types = tuple(tensor(v.type) for v in env.op.inputs)
        return _batched_call(attrs, types)(*arrays)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        grads: list[Value | None] = []
        for i, value in enumerate(op.inputs):
            wanted = cotangent_type(value.type)
            if wanted is None:
                grads.append(None)
                continue
            extra = {k: v for k, v in op.attr.items() if k != "dtype"}
            grads.append(b.one("call_vjp", *op.operands, cotangents[0], wrt=i, **extra))
        return tuple(grads)


def _check_result(dims: Dims, operands: Any, attrs: dict[str, Any], result: Tensor) -> None:
    """Raises a ShapeError unless the function returns the declared type."""
    types = tuple(tensor(o) for o in operands)
    args = [jax.ShapeDtypeStruct(dims.shape(t.dims), JAX_DTYPES[t.dtype]) for t in types]
    got = jax.eval_shape(_batched_call(attrs, types), *args)
    if got.shape != dims.shape(result.dims) or dtype_name(got.dtype) != result.dtype:
        raise ShapeError(
            f"{attrs['fn']} returns {dtype_name(got.dtype)}{list(got.shape)}, declared is "
            f"{result} = {list(dims.shape(result.dims))}",
            fix="make `out=` say what the function returns",
        )


@register
class CallVjp(OpDef):
    """`call_vjp(args..., cotangent, wrt=0, fn=..., batch=..., dims=...)`: one input's cotangent.

    `dims` are those of the call's result; the cotangent may have them in another order, as
    formats lay rows out differently.
    """

    name = "call_vjp"
    attributes = ("fn", "batch", "dims", "dtype", "settings", "wrt")
    arity = (2, None)
    opaque = True

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        *args, cotangent = operands
        ct = tensor(cotangent)
        if set(ct.dims) != set(attrs["dims"]):
            raise ShapeError(f"cotangent {ct} does not have the dims {attrs['dims']} of the call")
        _check_result(dims, args, attrs, Tensor(ct.dtype, tuple(attrs["dims"])))
        return (tensor(args[attrs["wrt"]]),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        shared = [d for d in attrs["batch"] if d not in dims_of(operands[attrs["wrt"]])]
        linear = ((len(operands) - 1,),)
        return locality(whole=_inside(operands, attrs), summed=shared, linear=linear)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        *args, ct = arrays
        *types, ct_type = (tensor(v.type) for v in env.op.inputs)
        fn = _batched_call(attrs, tuple(types))
        ordered = align(ct, ct_type.dims, tuple(attrs["dims"]))
        return call_vjp(fn, args, ordered, attrs["wrt"])


def _inside(operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> list[str]:
    """Dims that the function itself sees: it may look at any part of them."""
    return [d for o in operands for d in dims_of(o) if d not in attrs["batch"]]


def call_vjp(fn: Callable[..., Any], args: Any, cotangent: Any, wrt: int) -> Any:
    """Returns the cotangent of argument `wrt` of fn by jax.vjp."""

    def of_one(x: Any) -> Any:
        return fn(*args[:wrt], x, *args[wrt + 1 :])

    _, pull = jax.vjp(of_one, args[wrt])
    return pull(cotangent)[0]


def _batched_call(attrs: dict[str, Any], types: tuple[Tensor, ...]) -> Any:
    """The function over whole arrays: batch dims first, then mapped over."""
    batch = tuple(attrs["batch"])
    fn = functools.partial(resolve(attrs["fn"]), **dict(attrs.get("settings") or ()))
    mapped = batched(fn, types, batch)
    orders = [
        (*(d for d in batch if d in t.dims), *(d for d in t.dims if d not in batch)) for t in types
    ]

    def run(*arrays: Any) -> Any:
        moved = [
            align(jnp.asarray(a), t.dims, o) for a, t, o in zip(arrays, types, orders, strict=True)
        ]
        return mapped(*moved)

    return run
