"""The sorted format: one list of rows [N] grouped by expert, no padding to a capacity.

Every value over slots [G, E, C, ...] becomes one over rows [N, ...]. What an op becomes
follows from its types alone, so the rewrite holds for any expert and for its backward:

* a product of rows with an expert's weights is a grouped product;
* a product of two row tensors summed over the slots is a per-expert outer product;
* a sum over the slots is a per-expert sum;
* a per-expert vector beside rows is first copied to each row;
* elementwise ops, and reductions over a row's own dims, stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.errors import LoweringError
from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.text import format_op
from moegen.ir.types import CAPACITY, EXPERT, GROUP, Tensor, placement_of
from moegen.ops.rows import ROWS
from moegen.passes.formats.common import Stores, lower_routes, refused
from moegen.passes.formats.numbered import NumberedChoices

SLOT_DIMS = frozenset((GROUP, EXPERT, CAPACITY))


def to_sorted(program: Program, block: int = 1) -> Program:
    """Rewrites routes into row numbers and experts into grouped products.

    Raises:
      LoweringError: where an expert mixes the rows of a slot buffer, draws random numbers
        per slot, or is opaque.
    """
    sizes: list[Value] = []

    def store(b: Builder, op: Op) -> NumberedChoices:
        stored, counted = _store_choices(b, op, block)
        sizes.append(counted)
        return stored

    def other(b: Builder, op: Op) -> Sequence[Operand] | None:
        return _RowOp(b, op, sizes, block).lower()

    stores: Stores = {
        "assign": store,
        "assign_items": "expert choice fills every slot, so sorting rows has nothing to save; "
        'use Schedule(format="slots")',
        "dense_route": "every token is in every slot, so there are no rows to sort; "
        'use Schedule(format="onehot")',
    }
    return lower_routes(program, stores, other)


def _store_choices(b: Builder, op: Op, block: int) -> tuple[NumberedChoices, Value]:
    """Numbers the rows; returns the route and the number of rows of each expert."""
    if placement_of(op.result.type):
        raise refused(op, "the rows of a mesh's devices are no single sorted list; "
                      'use Schedule(format="slots") or "onehot"')  # fmt: skip
    weight, expert, *priority = op.inputs
    position = b.one("positions", expert, *priority, hint="position")
    row, sizes = b.emit("row_numbers", expert, position, block=block, hints=("row", "sizes"))
    source = b.one("invert_slots", row, dims=(ROWS,), hint="source")
    return NumberedChoices(weight, row, source, b.dims[ROWS]), sizes


class _RowOp:
    """Lowers one op outside routing that touches slots."""

    def __init__(self, b: Builder, op: Op, sizes: list[Value], block: int):
        self.b, self.op, self.sizes, self.block = b, op, sizes, block

    def lower(self) -> Sequence[Operand] | None:
        on_rows = [self.is_rows(o) for o in self.op.operands]
        declares_slots = any(over_slots(r.type) for r in self.op.results)
        if self.op.name in ("broadcast", "full") and declares_slots:
            return self.spread()
        if not any(on_rows):
            if declares_slots:
                self.refuse("makes a value per slot, and sorted rows have no slots")
            return None
        if self.op.name == "dot":
            return (self.dot(on_rows),)
        if self.op.name == "sum":
            return (self.sum(),)
        definition = registry.lookup(self.op.name)
        if definition.opaque:
            self.refuse("is opaque: it may look at all rows of an expert at once")
        if definition.elementwise:
            return self.again(*(self.per_row(o) for o in self.op.operands))
        if SLOT_DIMS & set(self.names("over")):
            self.refuse("mixes the rows of one expert")
        return self.again(*(self.per_row(o) for o in self.op.operands))

    def is_rows(self, operand: Operand) -> bool:
        return isinstance(operand, Value) and ROWS in getattr(operand.type, "dims", ())

    def again(self, *operands: Operand, **changes: object) -> tuple[Value, ...]:
        attrs = {**self.op.attr, **changes}
        hints = [r.name for r in self.op.results]
        results = self.b.emit(self.op.name, *operands, hints=hints, **attrs)
        return tuple(map(self.in_order, results, self.op.results))

    def in_order(self, made: Value, before: Value) -> Value:
        """Keeps the order of a row's own dims.

        Elementwise results have the order of their longest operand, and rows are two dims
        shorter now, so that a per-expert operand may have become the longest.
        """
        wanted = to_rows(_dims(before))
        if _dims(made) == wanted or set(_dims(made)) != set(wanted):
            return made
        return self.b.one("broadcast", made, dims=wanted, hint=before.name)

    def names(self, attr: str) -> tuple[str, ...]:
        given = self.op.attr.get(attr, ())
        return (given,) if isinstance(given, str) else tuple(given)

    def per_row(self, operand: Operand) -> Operand:
        """Copies a per-expert operand to the rows; leaves others alone."""
        if isinstance(operand, Value) and EXPERT in getattr(operand.type, "dims", ()):
            return self.b.one("per_row", operand, self.sizes[-1], hint=f"{operand.name}_rows")
        return operand

    def dot(self, on_rows: list[bool]) -> Value:
        a, b = self.op.operands
        over, out = self.names("over"), self.names("out")
        hint = self.op.result.name
        if all(on_rows):
            target = _dims(self.op.result)
            if over_slots(self.op.result.type):  # row by row: no slot dim is summed
                return self.b.one("dot", a, b, over=over, out=to_rows(out) or None, hint=hint)
            if not {GROUP, CAPACITY} <= set(over) or EXPERT in over:
                self.refuse("mixes the rows of one expert")
            return self.grouped("grouped_outer", a, b, out=target)
        rows, weights = (a, b) if on_rows[0] else (b, a)
        if EXPERT not in getattr(getattr(weights, "type", None), "dims", ()):
            return self.b.one("dot", a, b, over=over, out=to_rows(out) or None, hint=hint)
        return self.grouped("grouped_dot", rows, weights, over=over, out=to_rows(out) or None)

    def grouped(self, name: str, *operands: Operand, **attrs: object) -> Value:
        """Emits a grouped op; `block` says where each expert's rows may start."""
        hint = self.op.result.name
        return self.b.one(name, *operands, self.sizes[-1], block=self.block, hint=hint, **attrs)

    def sum(self) -> Value:
        (x,) = self.op.inputs
        over, hint = self.names("over"), self.op.result.name
        own = tuple(d for d in over if d not in SLOT_DIMS)
        slots = set(over) & SLOT_DIMS
        if own:
            x = self.b.one("sum", x, over=own, hint=hint)
        if not slots:
            return x
        if slots == SLOT_DIMS:
            return self.b.one("sum", x, over=(ROWS,), hint=hint)
        if slots != {GROUP, CAPACITY}:
            self.refuse("mixes the rows of one expert")
        return self.grouped("grouped_sum", x)

    def spread(self) -> tuple[Value, ...]:
        """A broadcast or a constant over all slots becomes one over all rows."""
        operands = (self.per_row(o) for o in self.op.operands)
        return self.again(*operands, dims=to_rows(self.names("dims")))

    def refuse(self, why: str) -> None:
        raise LoweringError(
            f"{self.op.name} {why}: format sorted cannot hold this expert",
            op=format_op(self.op, location=False),
            location=self.op.location,
            fix='use Schedule(format="slots") or "onehot", with a capacity',
        )


def over_slots(type_: object) -> bool:
    """Whether a type has one element or row per slot."""
    return set(getattr(type_, "dims", ())) >= SLOT_DIMS


def to_rows(dims: tuple[str, ...]) -> tuple[str, ...]:
    """Replaces the slot dims by the row dim, in front."""
    if not set(dims) >= SLOT_DIMS:
        return dims
    return (ROWS, *(d for d in dims if d not in SLOT_DIMS))


def _dims(value: Value) -> tuple[str, ...]:
    assert isinstance(value.type, Tensor)
    return value.type.dims
