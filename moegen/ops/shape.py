"""Ops that make or rearrange: constants, counters, broadcasts, one-hot, top-k."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DtypeError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import DTYPES, FLOATS, Tensor, Type, cotangent_type
from moegen.ops.named import JAX_DTYPES, align, dims_tuple, require_dims, require_numbers, tensor


@register
class Full(OpDef):
    """`full(0.0, dims=("G", "S"), dtype="f32")`: one number everywhere."""

    name = "full"
    attributes = ("dims", "dtype", "placed")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        (value,) = operands
        if not isinstance(value, Literal) or attrs["dtype"] not in DTYPES:
            raise ShapeError(f"takes a number and a dtype, got {value}")
        if isinstance(value.value, float) and attrs["dtype"] not in FLOATS:
            raise DtypeError(f"the number {value} does not fit {attrs['dtype']}")
        dims.shape(attrs["dims"])
        return (Tensor(attrs["dtype"], tuple(attrs["dims"])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality()

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.full(env.sizes.shape(attrs["dims"]), arrays[0], JAX_DTYPES[attrs["dtype"]])

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (None,)


@register
class Iota(OpDef):
    """`iota(dim="S")`: the index along a dim, i32."""

    name = "iota"
    attributes = ("dim", "placed")
    arity = (0, 0)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        dims.shape((attrs["dim"],))
        return (Tensor("i32", (attrs["dim"],)),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality()

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.arange(env.sizes[attrs["dim"]], dtype=jnp.int32)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return ()


@register
class Broadcast(OpDef):
    """`broadcast(x, dims=("G", "S", "E"))`: repeats and reorders to exactly these dims."""

    name = "broadcast"
    attributes = ("dims", "placed")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, out = tensor(operands[0]), tuple(attrs["dims"])
        dims.shape(out)
        missing = [d for d in x.dims if d not in out]
        if missing:
            raise ShapeError(f"dims {missing} of {x} are not in {out}", fix="sum over them first")
        return (Tensor(x.dtype, out),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        have, out = tensor(env.op.inputs[0].type).dims, tuple(attrs["dims"])
        return jnp.broadcast_to(align(arrays[0], have, out), env.sizes.shape(out))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        wanted = cotangent_type(op.inputs[0].type)
        return (b.fit(cotangents[0], wanted) if wanted else None,)


@register
class Merge(OpDef):
    """`merge(x, dims=("M", "Q"), into="E")`: adjacent dims become one, the last runs fastest."""

    name = "merge"
    attributes = ("dims", "into")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, parts = tensor(operands[0]), tuple(attrs["dims"])
        require_dims(x, parts)
        at = x.dims.index(parts[0])
        if x.dims[at : at + len(parts)] != parts:
            raise ShapeError(f"dims {parts} of {x} do not follow each other in that order")
        dims.define(attrs["into"], math.prod(dims.shape(parts)))
        merged = (*x.dims[:at], attrs["into"], *x.dims[at + len(parts) :])
        return (Tensor(x.dtype, merged),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=attrs["dims"], linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.reshape(arrays[0], env.sizes.shape(tensor(env.op.result.type).dims))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        wanted = cotangent_type(op.inputs[0].type)
        dim, into = op.attr["into"], op.attr["dims"]
        return (b.one("split", cotangents[0], dim=dim, into=into) if wanted else None,)


@register
class Split(OpDef):
    """`split(x, dim="E", into=("M", "Q"))`: one dim becomes several of known sizes."""

    name = "split"
    attributes = ("dim", "into")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, parts = tensor(operands[0]), tuple(attrs["into"])
        require_dims(x, (attrs["dim"],))
        sizes = dims.shape(parts)
        if math.prod(sizes) != dims[attrs["dim"]]:
            raise ShapeError(
                f"{attrs['dim']}={dims[attrs['dim']]} is not "
                f"{' * '.join(f'{p}={n}' for p, n in zip(parts, sizes, strict=True))}",
                fix="choose sizes whose product is the size of the dim",
            )
        at = x.dims.index(attrs["dim"])
        return (Tensor(x.dtype, (*x.dims[:at], *parts, *x.dims[at + 1 :])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=(attrs["dim"],), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jnp.reshape(arrays[0], env.sizes.shape(tensor(env.op.result.type).dims))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        wanted = cotangent_type(op.inputs[0].type)
        dims, into = op.attr["into"], op.attr["dim"]
        return (b.one("merge", cotangents[0], dims=dims, into=into) if wanted else None,)


@register
class Concat(OpDef):
    """`concat(a, b, dims=("E", "Z"), into="A")`: a's dim E followed by b's dim Z."""

    name = "concat"
    attributes = ("dims", "into")
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        a, b = (tensor(o) for o in operands)
        first, second = attrs["dims"]
        require_dims(a, (first,))
        require_dims(b, (second,))
        joined = tuple(attrs["into"] if d == first else d for d in a.dims)
        if joined != tuple(attrs["into"] if d == second else d for d in b.dims):
            raise ShapeError(f"apart from {first} and {second}, {a} and {b} differ in dims")
        if a.dtype != b.dtype:
            raise DtypeError(f"dtypes do not match: {a.dtype}, {b.dtype}", fix="mg.cast one side")
        dims.define(attrs["into"], dims[first] + dims[second])
        return (Tensor(a.dtype, joined),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=attrs["dims"], linear=((0, 1),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        axis = tensor(env.op.result.type).dims.index(attrs["into"])
        return jnp.concatenate(arrays, axis)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        grads, start = [], 0
        for value, dim in zip(op.inputs, op.attr["dims"], strict=True):
            wanted = cotangent_type(value.type)
            part = {"over": op.attr["into"], "start": start, "into": dim}
            grads.append(b.one("slice", cotangents[0], **part) if wanted else None)
            start += b.dims[dim]
        return tuple(grads)


@register
class Slice(OpDef):
    """`slice(x, over="A", start=0, into="E")`: as many elements of a dim as E has."""

    name = "slice"
    attributes = ("over", "start", "into")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, over, into = tensor(operands[0]), attrs["over"], attrs["into"]
        require_dims(x, (over,))
        if not isinstance(attrs["start"], int):
            raise ShapeError(f"start={attrs['start']} is not a whole number")
        if attrs["start"] < 0 or attrs["start"] + dims[into] > dims[over]:
            raise ShapeError(
                f"{into}={dims[into]} from {attrs['start']} reaches past {over}={dims[over]}"
            )
        return (Tensor(x.dtype, tuple(into if d == over else d for d in x.dims)),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=(attrs["over"],), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        axis = tensor(env.op.inputs[0].type).dims.index(attrs["over"])
        end = attrs["start"] + env.sizes[attrs["into"]]
        return jax.lax.slice_in_dim(arrays[0], attrs["start"], end, axis=axis)


@register
class OneHot(OpDef):
    """`one_hot(index, dim="E", dtype="f32")`: 1 where the index is; nothing when out of range."""

    name = "one_hot"
    attributes = ("dim", "dtype")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x = tensor(operands[0])
        if x.dtype != "i32":
            raise DtypeError(f"needs i32 indices, got {x}", fix='mg.cast(index, "i32")')
        if attrs["dtype"] not in DTYPES:
            raise DtypeError(f"no dtype {attrs['dtype']!r}", fix=f"use one of {', '.join(DTYPES)}")
        dims.shape((attrs["dim"],))
        return (Tensor(attrs["dtype"], (*x.dims, attrs["dim"])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality()

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return jax.nn.one_hot(arrays[0], env.sizes[attrs["dim"]], dtype=JAX_DTYPES[attrs["dtype"]])

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (None,)


@register
class TopK(OpDef):
    """`top_k(x, over="E", k=2)`: the k largest and their indices, ties to the lowest index.

    -0.0 counts as less than 0.0, as in jax.lax.top_k. The new dim of choices is `dim` (default
    K). Gradients go to the chosen elements.
    """

    name = "top_k"
    attributes = ("over", "k", "dim")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, over, k = tensor(operands[0]), attrs["over"], attrs["k"]
        require_dims(x, (over,))
        require_numbers(x)
        size = dims[over]
        if k > size:
            raise ShapeError(f"k={k} is more than {over}={size}", fix=f"pick k <= {size}")
        if k < 1:
            raise ShapeError(f"k={k} chooses nothing", fix=f"pick 1 <= k <= {size}")
        dims.define(attrs["dim"], k)
        out = (*(d for d in x.dims if d != over), attrs["dim"])
        return (Tensor(x.dtype, out), Tensor("i32", out))

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=(attrs["over"],))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        axis = tensor(env.op.inputs[0].type).dims.index(attrs["over"])
        return jax.lax.top_k(jnp.moveaxis(arrays[0], axis, -1), attrs["k"])

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        ct, wanted = cotangents[0], cotangent_type(op.inputs[0].type)
        if ct is None or wanted is None:
            return (None,)
        chosen = b.one("one_hot", op.results[1], dim=op.attr["over"], dtype=wanted.dtype)
        return (b.one("dot", ct, chosen, over=op.attr["dim"], out=wanted.dims),)


@register
class Take(OpDef):
    """`take(x, index, over="E")`: the element of x at each index; 0 when out of range."""

    name = "take"
    attributes = ("over",)
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, index = (tensor(o) for o in operands)
        (over,) = dims_tuple(attrs["over"])
        require_dims(x, (over,))
        if index.dtype != "i32":
            raise DtypeError(f"needs i32 indices, got {index}", fix='mg.cast(index, "i32")')
        if over in index.dims:
            raise ShapeError(
                f"index {index} has the dim {over} that is taken from",
                fix="give the new places a dim of their own",
            )
        rest = tuple(d for d in x.dims if d != over)
        out = (*(d for d in rest if d not in index.dims), *index.dims)
        return (Tensor(x.dtype, out),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=dims_tuple(attrs["over"]), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        x, index = (tensor(v.type) for v in env.op.inputs)
        (over,) = dims_tuple(attrs["over"])
        mask = jax.nn.one_hot(arrays[1], env.sizes[over], dtype=jnp.bool_)
        out = tensor(env.op.result.type).dims
        want = (*out, over)
        picked = jnp.where(
            align(mask, (*index.dims, over), want), align(arrays[0], x.dims, want), 0
        )
        return picked.sum(-1).astype(arrays[0].dtype)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        x, index = op.inputs
        wanted = cotangent_type(x.type)
        if wanted is None:
            return (None, None)
        (over,) = dims_tuple(op.attr["over"])
        hot = b.one("one_hot", index, dim=over, dtype=wanted.dtype)
        joined = dict.fromkeys((*tensor(cotangents[0].type).dims, *tensor(hot.type).dims))
        summed = tuple(d for d in joined if d not in wanted.dims)
        return (b.one("dot", cotangents[0], hot, over=summed, out=wanted.dims), None)
