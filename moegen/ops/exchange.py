"""Sorted rows on their way to the devices that hold their experts, and back.

Each device numbers its rows by the device they go to: Sent has, for each of them, as many rows as
may go there. `swap_parts` exchanges those blocks. `regroup` says how the rows that arrived are put
in the order of this device's experts, and what goes back where. All numbers count within one
device's list (see `parts`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from moegen.errors import PlacementError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import CAPACITY, CHOICE, EXPERT, GROUP, TOKEN, Tensor, Type
from moegen.ops.named import tensor
from moegen.ops.parts import (
    GROUP_PARTS,
    PARTS,
    ROWS,
    SENT,
    ListOp,
    in_all,
    list_axes,
    part_numbers,
    parts_of,
    with_splits,
)
from moegen.ops.routing import WITHIN_GROUP
from moegen.ops.rows import define_parts, rows_of_part

_CHOICES = Tensor("i32", (GROUP, TOKEN, CHOICE))
_COUNTS = Tensor("i32", (PARTS, EXPERT))


def check_devices(dims: Dims, devices: int) -> None:
    """Experts and parts must be shared out evenly."""
    if devices < 1 or dims[EXPERT] % devices or dims[PARTS] % devices:
        raise ShapeError(
            f"{devices} devices cannot share out {EXPERT}={dims[EXPERT]} experts and "
            f"{dims[PARTS]} parts of the groups"
        )


def _innermost(operands: Sequence[Type | Literal], axes: tuple[str, ...]) -> tuple[str, ...]:
    """The axes of the lists, which must end with these; without a mesh there are none."""
    have = list_axes(operands)
    if have and have[len(have) - len(axes) :] != axes:
        raise PlacementError(f"lists over {'@'.join(have)} are not exchanged over {axes}")
    return have


@register
class PairNumbers(ListOp):
    """`pair_numbers(expert, position, devices=4, parts=8)`: each choice's row among those sent.

    Returns i32[G, S, K], device * (rows per device) + row, past the end for a choice without a
    place, and the number of rows of each expert, i32[Parts, E]. Rows that go to one device are in
    the order of its experts.
    """

    name = "pair_numbers"
    attributes = ("devices", "parts")
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        for operand in operands:
            if tensor(operand) != _CHOICES:
                raise ShapeError(f"expert and position must be {_CHOICES}, got {operand}")
        define_parts(dims, attrs["parts"])
        check_devices(dims, attrs["devices"])
        dims.define(SENT, attrs["parts"] * attrs["devices"] * pair_rows(dims, attrs["devices"]))
        return (_CHOICES, _COUNTS)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        parts, devices = attrs["parts"], attrs["devices"]
        pairs = pair_rows(env.sizes, devices)
        each = env.sizes[EXPERT] // devices
        slots, counts = [], []
        for expert, position in zip(*(jnp.split(a, parts) for a in arrays), strict=True):
            row, count = rows_of_part(env, expert, position, block=1, none=-1)
            first = jnp.cumsum(count)[each - 1 :: each] - count.reshape(devices, each).sum(1)
            device = jnp.clip(expert, 0, env.sizes[EXPERT] - 1) // each
            slot = device * pairs + row - first[device]
            slots.append(jnp.where(row < 0, devices * pairs, slot))
            counts.append(count)
        return jnp.concatenate(slots).astype(jnp.int32), jnp.stack(counts).astype(jnp.int32)


def pair_rows(dims: Dims, devices: int) -> int:
    """The most rows that can go from a device to another: all it has, or all there is room for."""
    groups, tokens, choices = dims.shape((GROUP, TOKEN, CHOICE))
    groups //= dims[PARTS]
    experts, capacity = dims[EXPERT] // devices, min(dims[CAPACITY], tokens * choices)
    return groups * min(tokens * choices, experts * capacity)


def define_arrivals(dims: Dims, devices: int, arriving: int, block: int) -> None:
    """Adds the dims of rows that arrive, `arriving` at most on each device, and of their sizes."""
    padding = min(dims[EXPERT] // devices, arriving) * (block - 1)
    dims.define(ROWS, dims[PARTS] * math.ceil((arriving + padding) / block) * block)
    dims.define(GROUP_PARTS, dims[PARTS] // devices)


@register
class SwapParts(ListOp):
    """`swap_parts(x, axes=("expert",), devices=4)`: device j's block i becomes device i's block j.

    x is rows [Sent, ...] or numbers of rows [Parts, E].
    """

    name = "swap_parts"
    attributes = ("axes", "devices")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x = tensor(operands[0])
        if x.dims[:1] != (SENT,) and x != _COUNTS:
            raise ShapeError(f"needs rows [{SENT}, ...] or {_COUNTS}, got {x}")
        if not attrs["axes"]:
            raise ShapeError("axes=() are no mesh axes")
        check_devices(dims, attrs["devices"])
        return (x,)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        _innermost(operands, attrs["axes"])
        return super().place(operands, results, attrs)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=(EXPERT,), linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        (x,), n = arrays, attrs["devices"]
        own = () if tensor(env.op.inputs[0].type).dims == _COUNTS.dims else x.shape[1:]
        blocks = x.reshape(env.sizes[PARTS] // n, n, n, -1, *own)
        return blocks.swapaxes(1, 2).reshape(x.shape)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (b.one("swap_parts", cotangents[0], **op.attr),)


@register
class Regroup(OpDef):
    """`regroup(counts, axes=("expert",), devices=4, block=8)`: the order of rows that arrived.

    counts i32[Parts, E] say how many rows of each of this device's experts came from each device.
    Returns, for every row [N] by expert, which of [Sent] it is; for every one of [Sent] its row;
    and the number of rows of each expert, i32[GroupParts, E], a multiple of `block`.
    """

    name = "regroup"
    attributes = ("axes", "devices", "block")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        if tensor(operands[0]) != _COUNTS:
            raise ShapeError(f"needs {_COUNTS}, got {operands[0]}")
        devices, block = attrs["devices"], attrs["block"]
        if block < 1 or not attrs["axes"]:
            raise ShapeError(f"block={block}, axes={attrs['axes']}", fix="both are 1 or more")
        check_devices(dims, devices)
        define_arrivals(dims, devices, dims[SENT] // dims[PARTS], block)
        sizes = Tensor("i32", (GROUP_PARTS, EXPERT))
        return (Tensor("i32", (ROWS,)), Tensor("i32", (SENT,)), sizes)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        have = _innermost(operands, attrs["axes"])
        groups, experts = have[: len(have) - len(attrs["axes"])], attrs["axes"]
        where = {ROWS: have, SENT: have, GROUP_PARTS: groups, EXPERT: experts}
        return tuple(with_splits(r, where) for r in results)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        devices, block = attrs["devices"], attrs["block"]
        parts = parts_of(env.sizes)
        rows, pairs = env.sizes[ROWS] // parts, env.sizes[SENT] // parts
        takes, backs, sizes = [], [], []
        for counts in arrays[0].reshape(parts, devices, -1):
            size = -(-counts.sum(0) // block) * block
            start = jnp.cumsum(size) - size + jnp.cumsum(counts, 0) - counts
            before = jnp.cumsum(counts, 1) - counts
            at = jnp.arange(pairs // devices)[None, :, None]
            mine = (at >= before[:, None]) & (at < (before + counts)[:, None])
            back = jnp.where(mine, start[:, None] + at - before[:, None], 0).sum(-1)
            backs.append(jnp.where(mine.any(-1), back, rows).reshape(pairs))
            hot = backs[-1][:, None] == jnp.arange(rows)
            takes.append(jnp.where(hot, jnp.arange(pairs)[:, None], pairs).min(0))
            sizes.append(size)
        found = (jnp.concatenate(takes), jnp.concatenate(backs), jnp.stack(sizes))
        shaped = (*found[:2], found[2].reshape(parts // devices, -1))
        return tuple(a.astype(jnp.int32) for a in shaped)


@register
class TakeRows(ListOp):
    """`take_rows(x, index)`: rows of x[Sent, ...] or x[N, ...] at the numbers; 0 past the end."""

    name = "take_rows"
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, index = tensor(operands[0]), tensor(operands[1])
        lists = (ROWS, SENT)
        if not x.dims or x.dims[0] not in lists or not x.is_float:
            raise ShapeError(f"needs real rows [{ROWS}, ...] or [{SENT}, ...], got {x}")
        if index.dtype != "i32" or len(index.dims) != 1 or index.dims[0] not in lists:
            raise ShapeError(f"index must be i32[{ROWS}] or i32[{SENT}], got {index}")
        return (Tensor(x.dtype, (*index.dims, *x.dims[1:])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        x, index = arrays
        parts = parts_of(env.sizes)
        part = part_numbers(index.shape[0], parts)
        hot = in_all(index, part, x.shape[0] // parts, parts)[:, None] == jnp.arange(x.shape[0])
        return jnp.einsum("an,n...->a...", hot.astype(x.dtype), x)
