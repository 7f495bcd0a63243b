"""The slots format: numbered buffers, rows moved by gathers, experts outermost.

Buffers are laid out [E, G, C, ...], so that each expert's matrix product is one block.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.types import CAPACITY, EXPERT, GROUP, Tensor
from moegen.passes.formats.common import Stored, kept, lower_routes, slot_numbers, weight_of

SLOTS = (EXPERT, GROUP, CAPACITY)


def to_slots(program: Program) -> Program:
    """Rewrites routes into slot numbers and their inverse."""
    lowerings = {"kept": kept, "dispatch": _dispatch, "combine": _combine, "affinity": _affinity}
    return lower_routes(program, _assign, lowerings, reorder_slots)


def _assign(b: Builder, op: Op) -> Stored:
    weight, _, _, slot = slot_numbers(b, op)
    source = b.one("invert_slots", slot, dims=SLOTS, hint="source")
    empty = b.dims[EXPERT] * b.dims[CAPACITY]
    return Stored(weight, slot, source, None, empty)


def _dispatch(b: Builder, op: Op, route: Stored) -> Sequence[Operand]:
    x = op.operands[1]
    assert route.source is not None
    rows = b.one("take_tokens", x, route.source, *weight_of(op, route), hint=op.result.name)
    return (rows,)


def _combine(b: Builder, op: Op, route: Stored) -> Sequence[Operand]:
    y = op.operands[1]
    return (b.one("take_slots", y, route.slot, *weight_of(op, route), hint=op.result.name),)


def _affinity(b: Builder, op: Op, route: Stored) -> Sequence[Operand]:
    _, y, x = op.operands
    dtype = _dtype(route.weight)
    return (b.one("match_slots", y, route.slot, x, dtype=dtype, hint=op.result.name),)


def reorder_slots(b: Builder, op: Op) -> Sequence[Operand] | None:
    """Lets attributes that list dims follow the layout [E, G, C, ...] of rows."""
    changed = {
        name: slots_first(dims)
        for name in ("out", "dims")
        if op.name in ("dot", "broadcast") and (dims := op.attr.get(name))
    }
    if not changed or all(op.attr[n] == d for n, d in changed.items()):
        return None
    return b.emit(op.name, *op.operands, hints=[op.result.name], **{**op.attr, **changed})


def slots_first(dims: tuple[str, ...]) -> tuple[str, ...]:
    """Puts the slot dims in front, where all of them are there."""
    if not set(SLOTS) <= set(dims):
        return dims
    return (*SLOTS, *(d for d in dims if d not in SLOTS))


def _dtype(value: Value) -> str:
    assert isinstance(value.type, Tensor)
    return value.type.dtype
