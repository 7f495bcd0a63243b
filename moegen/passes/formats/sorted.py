"""The sorted format: one list of rows [N] grouped by expert, no padding to a capacity.

Every value over slots [G, E, C, ...] becomes one over rows [N, ...]. What an op becomes
follows from its types alone, so the rewrite holds for any expert and for its backward:

* a product of rows with an expert's weights is a grouped product;
* a product of two row tensors summed over the slots is a per-expert outer product;
* a sum over the slots is a per-expert sum;
* a per-expert vector beside rows is first copied to each row;
* elementwise ops, and reductions over a row's own dims, stay as they are.

On a mesh each device has a list of its own groups' rows. Where experts are shared out, rows travel
(`exchanges`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moegen.errors import LoweringError
from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.placement import Axes, placed_dims, placement, read_placed
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.text import format_op
from moegen.ir.types import CAPACITY, EXPERT, GROUP, Tensor, placement_of
from moegen.ops.parts import ROWS, SENT
from moegen.passes.formats.common import Stores, lower_routes
from moegen.passes.formats.exchanges import EXCHANGES, Exchange, Number, Shared
from moegen.passes.formats.numbered import NumberedChoices

SLOT_DIMS = frozenset((GROUP, EXPERT, CAPACITY))


def to_sorted(program: Program, block: int = 1, exchange: str = "blocks") -> Program:
    """Rewrites routes into row numbers and experts into grouped products.

    Args:
      program: with routes.
      block: each expert's rows start at a multiple of this.
      exchange: how rows go to experts on other devices, a name of `EXCHANGES`.

    Raises:
      LoweringError: where an expert mixes the rows of a slot buffer, draws random numbers
        per slot, or is opaque.
    """
    lists: list[_Lists] = []
    axes, number = _exchange_axes(program), EXCHANGES[exchange]

    def store(b: Builder, op: Op) -> NumberedChoices:
        stored, made = _store_choices(b, op, block, program, axes, number)
        lists.append(made)
        return stored

    def other(b: Builder, op: Op) -> Sequence[Operand] | None:
        return _RowOp(b, op, lists, block).lower()

    stores: Stores = {
        "assign": store,
        "assign_items": "expert choice fills every slot, so sorting rows has nothing to save; "
        'use Schedule(format="slots")',
        "dense_route": "every token is in every slot, so there are no rows to sort; "
        'use Schedule(format="onehot")',
    }
    return lower_routes(program, stores, other)


@dataclass(frozen=True, slots=True)
class _Lists:
    """The rows of each expert, and where experts are shared out, the way to them."""

    sizes: Value
    exchange: Exchange | None = None


def _exchange_axes(program: Program) -> Axes:
    """The mesh axes over which rows go to their experts, if they do."""
    for op in program.ops:
        if op.name == "all_to_all" and op.attr["split"] == EXPERT:
            axes = op.attr["axes"]
            assert isinstance(axes, tuple)
            return axes
    return ()


def _store_choices(
    b: Builder, op: Op, block: int, program: Program, axes: Axes, number: Number
) -> tuple[NumberedChoices, _Lists]:
    """Numbers the rows; returns the route and the lists of rows."""
    weight, expert, *priority = op.inputs
    position = b.one("positions", expert, *priority, hint="position")
    mesh = dict(program.mesh)
    parts = math.prod(mesh[a] for a in placement_of(op.result.type).axes(GROUP))
    if axes:
        shared = Shared(axes, math.prod(mesh[a] for a in axes), parts, block)
        stored, exchange = number(b, weight, expert, position, shared)
        return stored, _Lists(exchange.sizes, exchange)
    split = parts if placement_of(op.result.type).axes(GROUP) else None
    row, sizes = b.emit(
        "row_numbers", expert, position, block=block, parts=split, hints=("row", "sizes")
    )
    source = b.one("invert_slots", row, dims=(ROWS,), hint="source")
    return NumberedChoices(weight, row, source, b.dims[ROWS] // parts), _Lists(sizes)


class _RowOp:
    """Lowers one op outside routing that touches slots."""

    def __init__(self, b: Builder, op: Op, lists: list[_Lists], block: int):
        self.b, self.op, self.lists, self.block = b, op, lists, block

    @property
    def sizes(self) -> Value:
        """Rows of each expert."""
        return self.lists[-1].sizes

    def lower(self) -> Sequence[Operand] | None:
        on_rows = [self.is_rows(o) for o in self.op.operands]
        declares_slots = any(over_slots(r.type) for r in self.op.results)
        if self.op.name in ("broadcast", "full") and declares_slots:
            return self.spread()
        if not any(on_rows):
            if declares_slots:
                self.refuse("makes a value per slot, and sorted rows have no slots")
            return None
        if self.op.name == "all_to_all":
            return (self.exchange(),)
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
        dims = getattr(operand.type, "dims", ()) if isinstance(operand, Value) else ()
        return ROWS in dims or SENT in dims

    def exchange(self) -> Value:
        """Rows go to the devices of their experts, or back."""
        (rows,), way, hint = self.op.inputs, self.lists[-1].exchange, self.op.result.name
        assert way is not None
        move = way.to_experts if SENT in _dims(rows) else way.to_tokens
        return move(self.b, rows, hint)

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
            return self.b.one("per_row", operand, self.sizes, hint=f"{operand.name}_rows")
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
        return self.b.one(name, *operands, self.sizes, block=self.block, hint=hint, **attrs)

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
        operands = [self.per_row(o) for o in self.op.operands]
        dims, splits = to_rows(self.names("dims")), read_placed(self.names("placed"))
        own = {d: axes for d, axes in splits.items() if d in dims}
        if not any(self.is_rows(o) for o in operands):
            own[ROWS] = placement_of(self.sizes.type).used
        return self.again(*operands, dims=dims, placed=placed_dims(dims, placement(own)) or None)

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
