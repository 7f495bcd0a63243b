"""What the formats share: a stored route, and the walk that replaces routing ops by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from moegen.errors import LoweringError
from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.rewrite import rewrite
from moegen.ir.text import format_op
from moegen.ir.types import Tensor


class StoredRoute(Protocol):
    """A route whose format is chosen: what each op that reads it becomes.

    `op` is the op that is replaced; its result's name is taken over.
    """

    def dispatch(self, b: Builder, op: Op) -> Value:
        """Rows of tokens in slots."""

    def combine(self, b: Builder, op: Op) -> Value:
        """Rows of slots summed at their tokens."""

    def affinity(self, b: Builder, op: Op) -> Value:
        """Gradient of the weights."""

    def kept(self, b: Builder, op: Op) -> Value:
        """Which choices have a slot."""


Store = Callable[[Builder, Op], StoredRoute]
"""Stores the route that an op makes."""
Stores = Mapping[str, Store | str]
"""For each op that makes a route, how it is stored, or "why it cannot be; the fix"."""
Other = Callable[[Builder, Op], Sequence[Operand] | None]
"""Lowers an op that reads no route; None keeps it."""

MAKES_ROUTE = ("assign", "assign_items", "dense_route")


def lower_routes(program: Program, stores: Stores, other: Other) -> Program:
    """Replaces every op that makes or reads a route.

    Args:
      program: with routes.
      stores: for each op that makes a route, how it is stored, or why it cannot be.
      other: lowers the remaining ops.

    Raises:
      LoweringError: if a route cannot be stored, with the reason.
    """
    for op in program.ops:
        if isinstance(why := stores.get(op.name), str):
            raise refused(op, why)
    stored: dict[str, StoredRoute] = {}

    def rule(b: Builder, op: Op) -> Sequence[Operand] | None:
        if op.name in MAKES_ROUTE:
            store = stores[op.name]
            assert not isinstance(store, str)
            stored[op.result.name] = store(b, op)
            return (Value(op.result.name, op.result.type),)
        route = stored.get(op.inputs[0].name) if op.inputs else None
        if route is None:
            return other(b, op)
        return (getattr(route, op.name)(b, op),)

    return rewrite(program, rule)


def refused(op: Op, why: str) -> LoweringError:
    """The error for a route that a format cannot hold; `why` is "reason; fix"."""
    reason, _, fix = why.partition("; ")
    return LoweringError(
        f"{op.name}: {reason}",
        op=format_op(op, location=False),
        location=op.location,
        fix=fix or None,
    )


def weight_if_used(op: Op, weight: Value) -> tuple[Value, ...]:
    """The weights as a further operand, where the op uses them."""
    return (weight,) if op.attr.get("weighted") else ()


def dtype_of(operand: Operand) -> str:
    """The element type of a tensor operand."""
    assert isinstance(operand, Value)
    assert isinstance(operand.type, Tensor)
    return operand.type.dtype


def dims_of(operand: Operand) -> tuple[str, ...]:
    """The dims of a tensor operand."""
    assert isinstance(operand, Value)
    assert isinstance(operand.type, Tensor)
    return operand.type.dims
