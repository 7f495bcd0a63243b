"""Moves: which collectives bring a value from one place on a mesh to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from moegen.errors import LoweringError
from moegen.ir.builder import Builder
from moegen.ir.placement import Axes, describe, placement
from moegen.ir.program import Literal, Operand, Value
from moegen.ir.types import placement_of

V = TypeVar("V", bound=Operand)


class Moves:
    """Emits moves; what was moved once is not moved again.

    `arguments` are values from outside: a copy of one that is gathered for the forward is
    gathered anew by the backward, which costs time and saves the memory of whole weights.
    """

    def __init__(self, b: Builder, arguments: set[str]):
        self.b = b
        self.arguments = arguments
        self._made: dict[Any, Value] = {}

    def once(self, key: Any, make: Callable[[], Value]) -> Value:
        """Returns what was made under this key, or makes it."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def to(
        self,
        value: Value,
        target: Mapping[str, Axes],
        partial: Axes = (),
        late: bool = False,
    ) -> Value:
        """Brings a value to where its dims are split like this.

        Args:
          value: where it is now.
          target: axes of every dim that shall be split; those of other values do not matter.
          partial: axes over which a sum may still be owed.
          late: in the backward, weights are gathered again.

        Raises:
          LoweringError: if axes would have to change their order.
        """
        dims = getattr(value.type, "dims", ())
        wanted = {d: target.get(d, ()) for d in dims}
        value = self._reduced(value, wanted, partial)
        for source in dims:
            for goal in dims:
                axes = _leaving(value, source, wanted)
                if axes and axes == _joining(value, goal, wanted):
                    value = self._move(value, "all_to_all", "x", axes, join=source, split=goal)
        for dim in dims:
            if axes := _leaving(value, dim, wanted):
                again = True if late and value.name in self.arguments else None
                value = self._move(value, "all_gather", "all", axes, over=dim, again=again)
        for dim in dims:
            if axes := _joining(value, dim, wanted):
                value = self._move(value, "take_part", "part", axes, over=dim)
        if dict(placement_of(value.type).splits) != {d: a for d, a in wanted.items() if a}:
            raise LoweringError(
                f"{value}: {value.type} cannot be moved to {describe(placement(wanted))}",
                fix="let the dims have their axes in one order",
            )
        return value

    def paid(self, value: V, axes: Axes | None = None) -> V:
        """Takes the sum that a value owes, over these axes or all; numbers owe nothing."""
        if isinstance(value, Literal):
            return value
        owed = placement_of(value.type).partial
        owed = owed if axes is None else tuple(a for a in owed if a in axes)
        return self._move(value, "psum", "sum", owed) if owed else value  # type: ignore[return-value]

    def _reduced(self, value: Value, wanted: Mapping[str, Axes], partial: Axes) -> Value:
        """Pays what is owed: to each device its part where that is enough, else to all."""
        for dim, axes in wanted.items():
            place = placement_of(value.type)
            have = place.axes(dim)
            rest = axes[len(have) :] if axes[: len(have)] == have else ()
            if rest and set(rest) <= set(place.partial) - set(partial):
                value = self._move(value, "reduce_scatter", "part", rest, over=dim)
        left = tuple(a for a in placement_of(value.type).partial if a not in partial)
        return self.paid(value, left) if left else value

    def _move(self, value: Value, op: str, suffix: str, axes: Axes, **attrs: Any) -> Value:
        key = (op, value.name, axes, tuple(attrs.items()))
        hint = f"{value.name}_{suffix}"
        return self.once(key, lambda: self.b.one(op, value, axes=axes, hint=hint, **attrs))


def _leaving(value: Value, dim: str, wanted: Mapping[str, Axes]) -> Axes:
    """The innermost axes that a dim has and shall not have."""
    have = placement_of(value.type).axes(dim)
    return have[_common(have, wanted[dim]) :]


def _joining(value: Value, dim: str, wanted: Mapping[str, Axes]) -> Axes:
    """The innermost axes that a dim shall have and has not."""
    have = placement_of(value.type).axes(dim)
    return wanted[dim][_common(have, wanted[dim]) :] if have == wanted[dim][: len(have)] else ()


def _common(a: Axes, b: Axes) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
