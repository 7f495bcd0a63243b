"""The one-hot format: masks over all slots; rows move by matrix products.

The classical layout of GShard (arXiv:2006.16668): simple, and costly in memory and FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.types import CAPACITY, EXPERT, TOKEN, Tensor
from moegen.passes.formats.common import Stored, kept, lower_routes, slot_numbers, weight_of


def to_onehot(program: Program) -> Program:
    """Rewrites routes into masks [G, S, E, C]."""
    lowerings = {"kept": kept, "dispatch": _dispatch, "combine": _combine, "affinity": _affinity}
    return lower_routes(program, _assign, lowerings, lambda b, op: None)


def _assign(b: Builder, op: Op) -> Stored:
    weight, _, _, slot = slot_numbers(b, op)
    empty = b.dims[EXPERT] * b.dims[CAPACITY]
    return Stored(weight, slot, None, None, empty)


def _mask(b: Builder, op: Op, route: Stored, like: Operand) -> Value:
    weight = weight_of(op, route)
    hint = "combine_weights" if weight else "dispatch_mask"
    return b.one("slot_mask", route.slot, *weight, dtype=_dtype(like), hint=hint)


def _dispatch(b: Builder, op: Op, route: Stored) -> Sequence[Operand]:
    x = op.operands[1]
    mask = _mask(b, op, route, x)
    return (b.one("dot", mask, x, over=(TOKEN,), hint=op.result.name),)


def _combine(b: Builder, op: Op, route: Stored) -> Sequence[Operand]:
    y = op.operands[1]
    mask = _mask(b, op, route, y)
    return (b.one("dot", mask, y, over=(EXPERT, CAPACITY), hint=op.result.name),)


def _affinity(b: Builder, op: Op, route: Stored) -> Sequence[Operand]:
    _, y, x = op.operands
    dtype = _dtype(route.weight)
    return (b.one("match_slots", y, route.slot, x, dtype=dtype, hint=op.result.name),)


def _dtype(operand: Operand) -> str:
    assert isinstance(operand, Value)
    assert isinstance(operand.type, Tensor)
    return operand.type.dtype
