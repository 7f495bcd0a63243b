"""Rows in a chosen format: what routing ops become once `choose_format` has decided.

Slots are numbered. In the slots format slot = expert * C + place, within a group; in the
sorted format slot = row of one list of all groups' rows, grouped by expert. A number past
the end means "no slot". The meanings here are one-hot products over those numbers;
`moegen/kernels` has the gathers that run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DtypeError, ShapeError
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, dims_of, locality
from moegen.ir.program import Literal
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import CAPACITY, CHOICE, EXPERT, FLOATS, GROUP, TOKEN, Tensor, Type
from moegen.ops.named import JAX_DTYPES, align, tensor
from moegen.ops.parts import (
    PARTS,
    ROWS,
    SENT,
    ListOp,
    in_all,
    part_numbers,
    parts_of,
)
from moegen.ops.routing import WITHIN_GROUP, check_priority, positions

_CHOICES = (GROUP, TOKEN, CHOICE)
_SLOTS = frozenset((GROUP, EXPERT, CAPACITY))


def _of_choices(operand: Type | Literal, what: str) -> Tensor:
    """Checks that an operand is a number per choice."""
    found = tensor(operand, what)
    if found != Tensor("i32", _CHOICES):
        raise ShapeError(f"{what} must be i32[{', '.join(_CHOICES)}], got {found}")
    return found


def _check_weight(operands: Sequence[Type | Literal], dims: tuple[str, ...]) -> None:
    """Checks weights, where they are given: one per choice."""
    for operand in operands:
        weight = tensor(operand, "weight")
        if weight.dims != dims or not weight.is_float:
            raise ShapeError(f"weight must be real [{', '.join(dims)}], got {weight}")


def _check_slot_dims(dims: tuple[str, ...]) -> None:
    """Checks that dims are those of slots, in any order, or of rows."""
    if dims not in ((ROWS,), (SENT,)) and (len(dims) != len(_SLOTS) or set(dims) != _SLOTS):
        raise ShapeError(
            f"({', '.join(dims)}) are not slots ({GROUP}, {EXPERT}, {CAPACITY}) or {ROWS}"
        )


def _float_dtype(name: str) -> str:
    if name not in FLOATS:
        raise DtypeError(f"dtype {name!r} is not real", fix=f"use one of {', '.join(FLOATS)}")
    return name


@register
class Positions(OpDef):
    """`positions(expert, priority?)`: each choice's place in its expert's queue, i32."""

    name = "positions"
    arity = (1, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        expert = tensor(operands[0])
        if expert != Tensor("i32", _CHOICES):
            raise ShapeError(f"needs i32[{', '.join(_CHOICES)}], got {expert}")
        check_priority(*operands[1:])
        return (expert,)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        expert, *priority = arrays
        return positions(expert, priority[0] if priority else None, env.sizes[EXPERT])


@register
class SlotNumbers(OpDef):
    """`slot_numbers(expert, position)`: slot = expert * C + position within a group, i32.

    E * C where the queue is full or the choice is outside 0..E-1.
    """

    name = "slot_numbers"
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        dims.shape((EXPERT, CAPACITY))
        _of_choices(operands[1], "position")
        return (_of_choices(operands[0], "expert"),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        expert, position = arrays
        experts, capacity = env.sizes[EXPERT], env.sizes[CAPACITY]
        kept = (expert >= 0) & (expert < experts) & (position < capacity)
        return jnp.where(kept, expert * capacity + position, experts * capacity)


@register
class RowNumbers(ListOp):
    """`row_numbers(expert, position, block=1)`: rows of one list sorted by expert.

    Returns the row of each choice (N where it has none) and the number of rows of each
    expert. Every expert's rows start at a multiple of `block`; its size is padded likewise.
    Groups follow each other within an expert. With `parts=4`, each quarter of the groups has a
    list of its own; sizes are then [Parts, E]. With `dim="Sent"` the list is of rows on their way.
    """

    name = "row_numbers"
    attributes = ("block", "parts", "dim")
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        if attrs["block"] < 1:
            raise ShapeError(f"block={attrs['block']}", fix="rows per block are 1 or more")
        _of_choices(operands[1], "position")
        expert = _of_choices(operands[0], "expert")
        parts = attrs.get("parts")
        if parts is not None:
            define_parts(dims, parts)
        rows = (parts or 1) * row_count(dims, attrs["block"], parts or 1)
        dims.define(attrs.get("dim", ROWS), rows)
        return (expert, Tensor("i32", (PARTS, EXPERT) if parts else (EXPERT,)))

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        parts, rows = parts_of(env.sizes), env.sizes[attrs.get("dim", ROWS)]
        found = [
            rows_of_part(env, expert, position, attrs["block"], rows // parts)
            for expert, position in zip(*(jnp.split(a, parts) for a in arrays), strict=True)
        ]
        numbers, sizes = zip(*found, strict=True)
        return jnp.concatenate(numbers), jnp.stack(sizes) if "parts" in attrs else sizes[0]


def rows_of_part(env: Eval, expert: Any, position: Any, block: int, none: int) -> tuple[Any, Any]:
    """Row numbers [G, S, K] of one list, and rows per expert."""
    hot = jax.nn.one_hot(expert, env.sizes[EXPERT], dtype=jnp.int32)
    hot = hot * (position < env.sizes[CAPACITY])[..., None]
    count = hot.sum((1, 2))
    sizes = -(-count.sum(0) // block) * block
    start = jnp.cumsum(sizes) - sizes + jnp.cumsum(count, 0) - count
    row = jnp.einsum("gske,ge->gsk", hot, start) + position
    return jnp.where(hot.sum(-1) > 0, row, none).astype(jnp.int32), sizes


def define_parts(dims: Dims, parts: int) -> None:
    """Adds the dim of parts; each has as many groups as the others."""
    if parts < 1 or dims[GROUP] % parts:
        raise ShapeError(f"{GROUP}={dims[GROUP]} has no {parts} equal parts")
    dims.define(PARTS, parts)


def row_count(dims: Dims, block: int, parts: int = 1) -> int:
    """Rows of a part that are enough for every outcome of the routing, a multiple of `block`."""
    groups, tokens, choices = dims.shape(_CHOICES)
    groups //= parts
    experts, capacity = dims.shape((EXPERT, CAPACITY))
    most = min(groups * tokens * choices, groups * experts * min(capacity, tokens * choices))
    used = min(experts, most)
    return math.ceil((most + used * (block - 1)) / block) * block


@register
class InvertSlots(ListOp):
    """`invert_slots(slot, dims=("E", "C"))`: which choice is in each slot, i32.

    For group slots the number counts (token, choice) within the group and S * K means
    empty; for rows, `dims=("N",)`, it counts (group, token, choice), G * S * K empty; where lists
    have parts, within the part.
    """

    name = "invert_slots"
    attributes = ("dims",)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        dims.shape(attrs["dims"])
        _of_choices(operands[0], "slot")
        _check_slot_dims(tuple(attrs["dims"]))
        return (Tensor("i32", tuple(attrs["dims"])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        (slot,) = arrays
        if len(attrs["dims"]) == 1:
            return _invert_rows(env, slot, attrs["dims"][0])
        natural = (GROUP, EXPERT, CAPACITY)
        place = _place(slot, env, natural[1:])  # [G, S, K, E, C]
        place = place.reshape(slot.shape[0], math.prod(slot.shape[1:]), -1)
        number = jnp.arange(place.shape[-2], dtype=jnp.int32)[:, None]
        found = jnp.where(place > 0, number, place.shape[-2]).min(-2)
        shaped = found.reshape(env.sizes.shape(natural))
        return align(shaped, natural, tuple(attrs["dims"]))


@register
class ItemSlots(OpDef):
    """`item_slots(token)`: expert choice seen from the tokens, i32[G, S, E].

    For each token its slot e * C + c at each expert, E * C where the expert did not take it.
    """

    name = "item_slots"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        token = tensor(operands[0])
        if token != Tensor("i32", (GROUP, EXPERT, CAPACITY)):
            raise ShapeError(f"needs i32[{GROUP}, {EXPERT}, {CAPACITY}], got {token}")
        return (Tensor("i32", (GROUP, TOKEN, EXPERT)),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        (token,) = arrays
        tokens, experts, capacity = env.sizes.shape((TOKEN, EXPERT, CAPACITY))
        hot = token[:, None] == jnp.arange(tokens)[:, None, None]  # [G, S, E, C]
        slot = jnp.arange(experts)[:, None] * capacity + jnp.arange(capacity)
        return jnp.where(hot, slot, experts * capacity).min(-1).astype(jnp.int32)


@register
class TakeItems(OpDef):
    """`take_items(x, token, dims=("E", "G", "C"))`: x[G, S, ...] at the tokens the slots name."""

    name = "take_items"
    attributes = ("dims",)
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, token = tensor(operands[0]), tensor(operands[1])
        if x.dims[:2] != (GROUP, TOKEN) or token != Tensor("i32", (GROUP, EXPERT, CAPACITY)):
            raise ShapeError(
                f"x must be [{GROUP}, {TOKEN}, ...] and token per slot, got {x}, {token}"
            )
        _check_slot_dims(tuple(attrs["dims"]))
        return (Tensor(_float_dtype(x.dtype), (*attrs["dims"], *x.dims[2:])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP, linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        x, token = arrays
        hot = jax.nn.one_hot(token, x.shape[1], dtype=x.dtype)
        rows = jnp.einsum("gecs,gs...->gec...", hot, x)
        return _reorder(rows, (GROUP, EXPERT, CAPACITY), tuple(attrs["dims"]))


@register
class TakeTokens(ListOp):
    """`take_tokens(x, source, weight?)`: x[G, S, ...] at each slot's choice, 0 if empty.

    `source` is what `invert_slots` gives. With a weight [G, S, K], rows are multiplied.
    """

    name = "take_tokens"
    arity = (2, 3)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, source = tensor(operands[0]), tensor(operands[1])
        if x.dims[:2] != (GROUP, TOKEN):
            raise ShapeError(f"x must be [{GROUP}, {TOKEN}, ...], got {x}")
        if source.dtype != "i32":
            raise DtypeError(f"source must be i32, got {source}")
        dims.shape((CHOICE,))
        _check_slot_dims(source.dims)
        _check_weight(operands[2:], _CHOICES)
        return (Tensor(_float_dtype(x.dtype), (*source.dims, *x.dims[2:])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality((TOKEN, CHOICE), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        x, source, *weight = arrays
        choices = env.sizes[CHOICE]
        dims = tensor(env.op.inputs[1].type).dims
        repeated = jnp.repeat(x, choices, axis=1)  # [G, S * K, ...]
        if weight:
            flat = weight[0].reshape(weight[0].shape[0], -1).astype(x.dtype)
            repeated = repeated * flat.reshape(*flat.shape, *(1,) * (x.ndim - 2))
        if len(dims) == 1:
            table = repeated.reshape(-1, *x.shape[2:])
            parts = parts_of(env.sizes)
            part = part_numbers(source.shape[0], parts)
            choice = in_all(source, part, table.shape[0] // parts, parts)
            hot = jax.nn.one_hot(choice, table.shape[0], dtype=x.dtype)
            return jnp.einsum("na,a...->n...", hot, table)
        hot = jax.nn.one_hot(align(source, dims, (GROUP, EXPERT, CAPACITY)), repeated.shape[1])
        rows = jnp.einsum("geca,ga...->gec...", hot.astype(x.dtype), repeated)
        return _reorder(rows, (GROUP, EXPERT, CAPACITY), dims)


@register
class TakeSlots(ListOp):
    """`take_slots(y, slot, weight?)`: for each token the sum of its slots' rows [G, S, ...].

    y is [E, G, C, ...] in any order of those three, or [N, ...]. A device with some experts only
    gives its part of the sum.
    """

    name = "take_slots"
    arity = (2, 3)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        y, slot = tensor(operands[0]), tensor(operands[1], "slot")
        own = y.dims[slot_rank(y) :]
        if slot.dtype != "i32" or slot.dims[:2] != (GROUP, TOKEN) or len(slot.dims) != 3:
            raise ShapeError(f"slot must be i32[{GROUP}, {TOKEN}, ...], got {slot}")
        _check_weight(operands[2:], slot.dims)
        return (Tensor(_float_dtype(y.dtype), (GROUP, TOKEN, *own)),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality((TOKEN, CAPACITY, CHOICE), summed=(EXPERT,), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        y, slot, *weight = arrays
        rows = _rows_of_choices(env, y, slot)
        if weight:
            w = weight[0].astype(rows.dtype)
            rows = rows * w.reshape(*w.shape, *(1,) * (rows.ndim - 3))
        return rows.sum(2)


@register
class MatchSlots(ListOp):
    """`match_slots(y, slot, x, dtype="f32")`: per choice, its slot's row times its token's."""

    name = "match_slots"
    attributes = ("dtype",)
    arity = (3, 3)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        y, slot, x = tensor(operands[0]), _of_choices(operands[1], "slot"), tensor(operands[2])
        own = y.dims[slot_rank(y) :]
        if x.dims != (GROUP, TOKEN, *own) or x.dtype != y.dtype or not x.is_float:
            raise ShapeError(f"rows do not match: {y} and {x}")
        return (Tensor(_float_dtype(attrs["dtype"]), slot.dims),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        summed = (EXPERT, *dims_of(operands[2])[2:])
        return locality((TOKEN, CAPACITY, CHOICE), summed=summed, linear=((0,), (2,)))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        y, slot, x = arrays
        rows = _rows_of_choices(env, y, slot) * x[:, :, None]
        return rows.reshape(*slot.shape, -1).astype(JAX_DTYPES[attrs["dtype"]]).sum(-1)


@register
class SlotMask(OpDef):
    """`slot_mask(slot, weight?, dtype="f32")`: one-hot places [G, S, E, C] of each token.

    Summed over the choices; with a weight [G, S, K], each choice counts with its weight.
    """

    name = "slot_mask"
    attributes = ("dtype",)
    arity = (1, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        if tensor(operands[0]).dtype != "i32":
            raise ShapeError(f"slot must be i32, got {operands[0]}")
        _of_choices(operands[0], "slot")
        _check_weight(operands[1:], _CHOICES)
        dims.shape((EXPERT, CAPACITY))
        return (Tensor(_float_dtype(attrs["dtype"]), (GROUP, TOKEN, EXPERT, CAPACITY)),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        slot, *weight = arrays
        place = _place(slot, env, (EXPERT, CAPACITY))
        if weight:
            place = place * weight[0][..., None, None]
        return place.sum(2).astype(JAX_DTYPES[attrs["dtype"]])


def slot_rank(type_: Tensor) -> int:
    """How many leading dims of a row tensor say which slot it is: 1 (N) or 3 (G, E, C)."""
    if type_.dims[:1] in ((ROWS,), (SENT,)):
        return 1
    if set(type_.dims[:3]) == {GROUP, EXPERT, CAPACITY}:
        return 3
    raise ShapeError(f"{type_} does not start with slots ({GROUP}, {EXPERT}, {CAPACITY}) or {ROWS}")


def _invert_rows(env: Eval, slot: Any, dim: str) -> Any:
    """For every row of a list the number of its choice within its part."""
    parts, rows = parts_of(env.sizes), env.sizes[dim]
    place = _place(slot, env, (dim,)).reshape(parts, slot.size // parts, parts, rows // parts)
    place = jnp.stack([place[p, :, p] for p in range(parts)])  # [parts, choices, rows]
    number = jnp.arange(place.shape[1], dtype=jnp.int32)[:, None]
    return jnp.where(place > 0, number, place.shape[1]).min(1).reshape(rows)


def _place(slot: Any, env: Eval, dims: tuple[str, ...]) -> Any:
    """One-hot places of slot numbers: [G, S, K, N] or [G, S, K, E, C]."""
    if len(dims) == 1:
        parts, rows = parts_of(env.sizes), env.sizes[dims[0]]
        part = part_numbers(slot.shape[0], parts)[:, None, None]
        return jax.nn.one_hot(in_all(slot, part, rows // parts, parts), rows)
    shape = env.sizes.shape((EXPERT, CAPACITY))
    return jax.nn.one_hot(slot, math.prod(shape)).reshape(*slot.shape, *shape)


def _rows_of_choices(env: Eval, y: Any, slot: Any) -> Any:
    """Rows [G, S, K, ...] of each choice's slot, 0 where it has none."""
    type_ = tensor(env.op.inputs[0].type)
    if slot_rank(type_) == 1:
        place = _place(slot, env, type_.dims[:1]).astype(y.dtype)
        return jnp.einsum("gskn,n...->gsk...", place, y)
    y = jnp.moveaxis(y, [type_.dims.index(d) for d in (GROUP, EXPERT, CAPACITY)], [0, 1, 2])
    place = _place(slot, env, (EXPERT, CAPACITY)).astype(y.dtype)
    return jnp.einsum("gskec,gec...->gsk...", place, y)


def _reorder(rows: Any, have: tuple[str, ...], want: tuple[str, ...]) -> Any:
    return jnp.moveaxis(rows, [have.index(d) for d in want], range(len(want)))
