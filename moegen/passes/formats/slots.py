"""The slots format: numbered buffers, rows moved by gathers, experts outermost.

Buffers are laid out [E, G, C, ...], so that each expert's matrix product is one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.types import CAPACITY, EXPERT, GROUP
from moegen.passes.formats.common import Stores, dims_of, lower_routes, weight_if_used
from moegen.passes.formats.numbered import NumberedChoices, slot_numbers

SLOTS = (EXPERT, GROUP, CAPACITY)


def to_slots(program: Program) -> Program:
    """Rewrites routes into slot numbers and their inverse.

    Raises:
      LoweringError: for a soft route.
    """
    stores: Stores = {
        "assign": _store_choices,
        "assign_items": _store_items,
        "dense_route": "every token is in every slot, so there are no slots to gather; "
        'use Schedule(format="onehot")',
    }
    return lower_routes(program, stores, reorder_slots)


def _store_choices(b: Builder, op: Op) -> NumberedChoices:
    weight, slot = slot_numbers(b, op)
    source = b.one("invert_slots", slot, dims=SLOTS, hint="source")
    return NumberedChoices(weight, slot, source, b.dims[EXPERT] * b.dims[CAPACITY])


@dataclass(frozen=True, slots=True)
class SlotItems:
    """Expert choice: each slot names its token, and no slot is empty.

    Attributes:
      weight: [G, E, C].
      token: i32[G, E, C].
      slot: i32[G, S, E], for each token its slot at each expert, or E * C.
    """

    weight: Value
    token: Value
    slot: Value

    def dispatch(self, b: Builder, op: Op) -> Value:
        """A gather of tokens."""
        rows = b.one("take_items", op.operands[1], self.token, dims=SLOTS, hint=op.result.name)
        if not op.attr.get("weighted"):
            return rows
        return b.one("mul", rows, _like(b, self.weight, rows), hint=op.result.name)

    def combine(self, b: Builder, op: Op) -> Value:
        """A gather of rows, weighted where they stand, summed over the experts."""
        rows = op.operands[1]
        assert isinstance(rows, Value)
        for weight in weight_if_used(op, self.weight):
            rows = b.one("mul", rows, _like(b, weight, rows))
        return b.one("take_slots", rows, self.slot, hint=op.result.name)

    def affinity(self, b: Builder, op: Op) -> Value:
        """Inner products of rows with the tokens gathered to them."""
        _, y, x = op.operands
        tokens = b.one("take_items", x, self.token, dims=SLOTS)
        own = tuple(d for d in dims_of(tokens) if d not in SLOTS)
        return b.one("dot", y, tokens, over=own, out=dims_of(self.weight), hint=op.result.name)

    def kept(self, b: Builder, op: Op) -> Value:
        """Every slot is taken."""
        return b.one("ge", self.token, 0, hint=op.result.name)


def _store_items(b: Builder, op: Op) -> SlotItems:
    weight, token = op.inputs
    return SlotItems(weight, token, b.one("item_slots", token, hint="slot"))


def _like(b: Builder, weight: Value, rows: Value) -> Value:
    """The weights in the dtype of the rows."""
    dtype = getattr(rows.type, "dtype", "f32")
    same = getattr(weight.type, "dtype", None) == dtype
    return weight if same else b.one("cast", weight, dtype=dtype)


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
    """Puts the slot dims in front of a row's own dims, where all of them are there."""
    if not set(SLOTS) < set(dims):
        return dims
    return (*SLOTS, *(d for d in dims if d not in SLOTS))
