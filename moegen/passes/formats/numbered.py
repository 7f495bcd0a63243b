"""A token-choice route as numbers: which slot each choice has, which choice each slot has.

Slots and sorted rows differ in how they number; moving rows is the same gather either way.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegen.ir.builder import Builder
from moegen.ir.program import Op, Value
from moegen.passes.formats.common import dtype_of, weight_if_used


@dataclass(frozen=True, slots=True)
class NumberedChoices:
    """Token choice by slot numbers.

    Attributes:
      weight: [G, S, K].
      slot: i32[G, S, K], the number of each choice's slot.
      source: i32, for each slot the number of its choice.
      empty: the slot number that means "none".
    """

    weight: Value
    slot: Value
    source: Value
    empty: int

    def dispatch(self, b: Builder, op: Op) -> Value:
        """A gather of tokens through `source`."""
        weight = weight_if_used(op, self.weight)
        return b.one("take_tokens", op.operands[1], self.source, *weight, hint=op.result.name)

    def combine(self, b: Builder, op: Op) -> Value:
        """A gather of rows through `slot`, summed over the choices."""
        weight = weight_if_used(op, self.weight)
        return b.one("take_slots", op.operands[1], self.slot, *weight, hint=op.result.name)

    def affinity(self, b: Builder, op: Op) -> Value:
        """Inner products of gathered rows with tokens."""
        _, y, x = op.operands
        dtype = dtype_of(self.weight)
        return b.one("match_slots", y, self.slot, x, dtype=dtype, hint=op.result.name)

    def kept(self, b: Builder, op: Op) -> Value:
        """A choice is kept when its number means a slot."""
        return b.one("lt", self.slot, self.empty, hint=op.result.name)


def slot_numbers(b: Builder, op: Op) -> tuple[Value, Value]:
    """Emits the queue positions and slot numbers of an `assign`; returns weight and slot."""
    weight, expert, *priority = op.inputs
    position = b.one("positions", expert, *priority, hint="position")
    return weight, b.one("slot_numbers", expert, position, hint="slot")
