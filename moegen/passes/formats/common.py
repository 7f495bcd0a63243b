"""What the formats share: a route's numbers, and a walk that knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.rewrite import rewrite

Lowering = Callable[[Builder, Op, "Stored"], Sequence[Operand]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A route after its format is chosen: tensors of the program.

    Attributes:
      weight: [G, S, K].
      slot: i32[G, S, K], the number of each choice's slot.
      source: i32, for each slot the number of its choice; None where no gather needs it.
      sizes: i32[E], rows per expert, in the sorted format.
      empty: the slot number that means "none".
    """

    weight: Value
    slot: Value
    source: Value | None
    sizes: Value | None
    empty: int


def lower_routes(
    program: Program,
    assign: Callable[[Builder, Op], Stored],
    lowerings: Mapping[str, Lowering],
    other: Callable[[Builder, Op], Sequence[Operand] | None],
) -> Program:
    """Replaces `assign` by tensors and each op that reads a route by its lowering."""
    stored: dict[str, Stored] = {}

    def rule(b: Builder, op: Op) -> Sequence[Operand] | None:
        if op.name == "assign":
            route = op.result
            stored[route.name] = assign(b, op)
            return (Value(route.name, route.type),)
        if op.inputs and op.inputs[0].name in stored and op.name in lowerings:
            return lowerings[op.name](b, op, stored[op.inputs[0].name])
        return other(b, op)

    return rewrite(program, rule)


def slot_numbers(b: Builder, op: Op) -> tuple[Value, Value, Value, Value]:
    """Emits the queue positions of an `assign`; returns weight, expert, position, slot."""
    weight, expert, *priority = op.inputs
    position = b.one("positions", expert, *priority, hint="position")
    slot = b.one("slot_numbers", expert, position, hint="slot")
    return weight, expert, position, slot


def kept(b: Builder, op: Op, route: Stored) -> Sequence[Operand]:
    """A choice is kept when its slot number means a slot."""
    return (b.one("lt", route.slot, route.empty, hint=op.result.name),)


def weight_of(op: Op, route: Stored) -> tuple[Value, ...]:
    """The weights as a further operand, where the op uses them."""
    return (route.weight,) if op.attr.get("weighted") else ()
