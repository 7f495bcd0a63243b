"""canonicalize: folds neutral arithmetic, merges equal ops, drops what nothing needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moegen.ir.builder import Builder
from moegen.ir.program import Literal, Op, Operand, Program, Value
from moegen.ir.rewrite import keep, rewrite
from moegen.ir.types import Tensor

_NEUTRAL = {
    ("add", 1, 0),
    ("add", 0, 0),
    ("sub", 1, 0),
    ("mul", 1, 1),
    ("mul", 0, 1),
    ("div", 1, 1),
}
"""(op, side, number): the number on that side leaves the other operand as it is."""
_COMMUTES = ("add", "mul", "maximum", "minimum", "eq", "ne", "logical_and", "logical_or")


def canonicalize(program: Program) -> Program:
    """Returns an equal program with fewer ops; values do not change, not even by rounding."""
    seen: dict[Any, tuple[Value, ...]] = {}

    def rule(b: Builder, op: Op) -> Sequence[Operand] | None:
        folded = _fold(op)
        if folded is not None:
            return (folded,)
        op = replace(op, operands=_ordered(op))
        key = (op.name, op.operands, op.attrs)
        if key not in seen:
            seen[key] = keep(b, op)
        return seen[key]

    return rewrite(program, rule)


def _fold(op: Op) -> Operand | None:
    """Returns the operand that the op merely repeats, if it does."""
    if op.name == "cast" and _same_type(op, 0):
        return op.operands[0]
    if op.name == "broadcast" and _same_type(op, 0):
        return op.operands[0]
    if op.name == "sum" and op.attr["over"] == ():
        return op.operands[0]
    for side, operand in enumerate(op.operands):
        neutral = isinstance(operand, Literal) and (op.name, side, operand.value) in _NEUTRAL
        if neutral and _same_type(op, 1 - side):
            return op.operands[1 - side]
    return None


def _same_type(op: Op, side: int) -> bool:
    other = op.operands[side]
    return (
        isinstance(other, Value)
        and isinstance(other.type, Tensor)
        and other.type == op.results[0].type
    )


def _ordered(op: Op) -> tuple[Operand, ...]:
    """Puts a number on the right of ops that commute, so that equal ops look equal."""
    if op.name in _COMMUTES and isinstance(op.operands[0], Literal):
        return (op.operands[1], op.operands[0])
    return op.operands
