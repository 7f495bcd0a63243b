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
from moegen.ops.routing import WITHIN_GROUP, check_priority, positions

ROWS = "N"
"""The dim of rows in the sorted format: all groups' rows in one list."""
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
    if dims != (ROWS,) and (len(dims) != len(_SLOTS) or set(dims) != _SLOTS):
        raise ShapeError(
            f"({', '.join(dims)}) are not slots ({GROUP}, {EXPERT}, {CAPACITY}) or {ROWS}"
        )


def _list_of_groups(dims: tuple[str, ...]) -> tuple[str, ...]:
    """Dims that must be whole beside those of a group: sorted rows are one list of all groups."""
    return (GROUP, ROWS) if ROWS in dims else ()


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
class RowNumbers(OpDef):
    """`row_numbers(expert, position, block=1)`: rows of one list sorted by expert.

    Returns the row of each choice (N where it has none) and the number of rows of each
    expert. Every expert's rows start at a multiple of `block`; its size is padded likewise.
    Groups follow each other within an expert.
    """

    name = "row_numbers"
    attributes = ("block",)
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        if attrs["block"] < 1:
            raise ShapeError(f"block={attrs['block']}", fix="rows per block are 1 or more")
        _of_choices(operands[1], "position")
        expert = _of_choices(operands[0], "expert")
        dims.define(ROWS, row_count(dims, attrs["block"]))
        return (expert, Tensor("i32", (EXPERT,)))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        expert, position = arrays
        experts, block = env.sizes[EXPERT], attrs["block"]
        hot = jax.nn.one_hot(expert, experts, dtype=jnp.int32)
        hot = hot * (position < env.sizes[CAPACITY])[..., None]
        count = hot.sum((1, 2))
        sizes = -(-count.sum(0) // block) * block
        start = jnp.cumsum(sizes) - sizes + jnp.cumsum(count, 0) - count
        row = jnp.einsum("gske,ge->gsk", hot, start) + position
        return jnp.where(hot.sum(-1) > 0, row, env.sizes[ROWS]).astype(jnp.int32), sizes


def row_count(dims: Dims, block: int) -> int:
    """Rows that are enough for every outcome of the routing, a multiple of `block`."""
    groups, tokens, choices = dims.shape(_CHOICES)
    experts, capacity = dims.shape((EXPERT, CAPACITY))
    most = min(groups * tokens * choices, groups * experts * min(capacity, tokens * choices))
    used = min(experts, most)
    return math.ceil((most + used * (block - 1)) / block) * block


@register
class InvertSlots(OpDef):
    """`invert_slots(slot, dims=("E", "C"))`: which choice is in each slot, i32.

    For group slots the number counts (token, choice) within the group and S * K means
    empty; for sorted rows, `dims=("N",)`, it counts (group, token, choice), G * S * K empty.
    """

    name = "invert_slots"
    attributes = ("dims",)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        dims.shape(attrs["dims"])
        _of_choices(operands[0], "slot")
        _check_slot_dims(tuple(attrs["dims"]))
        return (Tensor("i32", tuple(attrs["dims"])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=(*WITHIN_GROUP, *_list_of_groups(attrs["dims"])))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        (slot,) = arrays
        place = _place(slot, env, tuple(attrs["dims"]))  # [*choices, *slots]
        if ROWS in attrs["dims"]:
            natural: tuple[str, ...] = (ROWS,)
            place = place.reshape(slot.size, -1)
        else:
            natural = (GROUP, EXPERT, CAPACITY)
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
class TakeTokens(OpDef):
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
        return locality((*WITHIN_GROUP, *_list_of_groups(dims_of(operands[1]))), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        x, source, *weight = arrays
        choices = env.sizes[CHOICE]
        dims = tensor(env.op.inputs[1].type).dims
        repeated = jnp.repeat(x, choices, axis=1)  # [G, S * K, ...]
        if weight:
            flat = weight[0].reshape(weight[0].shape[0], -1).astype(x.dtype)
            repeated = repeated * flat.reshape(*flat.shape, *(1,) * (x.ndim - 2))
        if ROWS in dims:
            table = repeated.reshape(-1, *x.shape[2:])
            hot = jax.nn.one_hot(source, table.shape[0], dtype=x.dtype)
            return jnp.einsum("na,a...->n...", hot, table)
        hot = jax.nn.one_hot(align(source, dims, (GROUP, EXPERT, CAPACITY)), repeated.shape[1])
        rows = jnp.einsum("geca,ga...->gec...", hot.astype(x.dtype), repeated)
        return _reorder(rows, (GROUP, EXPERT, CAPACITY), dims)


@register
class TakeSlots(OpDef):
    """`take_slots(y, slot, weight?)`: for each token the sum of its slots' rows [G, S, ...].

    y is [E, G, C, ...] in any order of those three, or [N, ...].
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
        return locality((*WITHIN_GROUP, *_list_of_groups(dims_of(operands[0]))), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        y, slot, *weight = arrays
        rows = _rows_of_choices(env, y, slot)
        if weight:
            w = weight[0].astype(rows.dtype)
            rows = rows * w.reshape(*w.shape, *(1,) * (rows.ndim - 3))
        return rows.sum(2)


@register
class MatchSlots(OpDef):
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
        whole = (*WITHIN_GROUP, *_list_of_groups(dims_of(operands[0])))
        return locality(whole, summed=dims_of(operands[2])[2:], linear=((0,), (2,)))

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
    if type_.dims[:1] == (ROWS,):
        return 1
    if set(type_.dims[:3]) == {GROUP, EXPERT, CAPACITY}:
        return 3
    raise ShapeError(f"{type_} does not start with slots ({GROUP}, {EXPERT}, {CAPACITY}) or {ROWS}")


def _place(slot: Any, env: Eval, dims: tuple[str, ...]) -> Any:
    """One-hot places of slot numbers: [G, S, K, N] or [G, S, K, E, C]."""
    if ROWS in dims:
        return jax.nn.one_hot(slot, env.sizes[ROWS])
    shape = env.sizes.shape((EXPERT, CAPACITY))
    return jax.nn.one_hot(slot, math.prod(shape)).reshape(*slot.shape, *shape)


def _rows_of_choices(env: Eval, y: Any, slot: Any) -> Any:
    """Rows [G, S, K, ...] of each choice's slot, 0 where it has none."""
    type_ = tensor(env.op.inputs[0].type)
    if slot_rank(type_) == 1:
        return jnp.einsum("gskn,n...->gsk...", _place(slot, env, (ROWS,)).astype(y.dtype), y)
    y = jnp.moveaxis(y, [type_.dims.index(d) for d in (GROUP, EXPERT, CAPACITY)], [0, 1, 2])
    place = _place(slot, env, (EXPERT, CAPACITY)).astype(y.dtype)
    return jnp.einsum("gskec,gec...->gsk...", place, y)


def _reorder(rows: Any, have: tuple[str, ...], want: tuple[str, ...]) -> Any:
    return jnp.moveaxis(rows, [have.index(d) for d in want], range(len(want)))
