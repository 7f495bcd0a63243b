"""Programs: immutable, straight-line SSA over named-dim types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moegen.errors import Location
from moegen.ir.types import Type


@dataclass(frozen=True, slots=True)
class Value:
    """A name with a type; within a program the name is defined exactly once."""

    name: str
    type: Type

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True, slots=True)
class Literal:
    """A Python number used directly as an operand; it takes its neighbour's dtype."""

    value: float | int | bool

    def __str__(self) -> str:
        return repr(self.value)


Operand = Value | Literal
Attr = str | int | float | bool | None | tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One line of a program: `%results = name(operands, attrs)`.

    The location is where the author asked for it; it does not count in comparisons.
    """

    name: str
    operands: tuple[Operand, ...]
    attrs: tuple[tuple[str, Attr], ...]
    results: tuple[Value, ...]
    location: Location | None = field(default=None, compare=False)

    @property
    def attr(self) -> dict[str, Any]:
        """The attributes as a new dict."""
        return dict(self.attrs)

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The operands that are values, in order, literals left out."""
        return tuple(o for o in self.operands if isinstance(o, Value))

    @property
    def result(self) -> Value:
        """The only result; an error in the compiler where there are several."""
        (value,) = self.results
        return value


@dataclass(frozen=True, slots=True)
class Program:
    """A layer: dims with sizes, inputs, ops in order, named outputs.

    A *joint* program also has `cotangents` (inputs: one per float output) and `gradients`
    (outputs: one per float input); `differentiate` adds both. On a `mesh`, (axis, size) pairs,
    types say where values are; dims keep the sizes they have on all devices together.
    """

    name: str
    dims: tuple[tuple[str, int], ...]
    inputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[tuple[str, Value], ...]
    cotangents: tuple[Value, ...] = ()
    gradients: tuple[tuple[str, Value], ...] = ()
    mesh: tuple[tuple[str, int], ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Dim name to size, as a new dict."""
        return dict(self.dims)

    @property
    def arguments(self) -> tuple[Value, ...]:
        """Every value that is given from outside: inputs, then cotangents."""
        return self.inputs + self.cotangents

    @property
    def returned(self) -> tuple[Value, ...]:
        """Every value that is handed out: outputs, then gradients."""
        return tuple(v for _, v in self.outputs + self.gradients)

    def definitions(self) -> dict[str, Op]:
        """Maps each value's name to the op that defines it (arguments are absent)."""
        return {r.name: op for op in self.ops for r in op.results}

    def users(self) -> dict[str, list[Op]]:
        """Maps each value's name to the ops that read it."""
        found: dict[str, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                found.setdefault(value.name, []).append(op)
        return found

    def with_(self, **changes: Any) -> Program:
        """Returns a copy with some fields replaced."""
        return replace(self, **changes)


_ATTR_ORDER = {"axes": -3, "over": -2, "out": -1, "placed": 1, "kernel": 2, "tile": 3, "source": 4}


def make_attrs(attrs: Mapping[str, Attr]) -> tuple[tuple[str, Attr], ...]:
    """Freezes attributes in one order: dims first, decisions last, others by name between.

    Absent (None) ones are left out; a single dim in `over` is written without a tuple.
    """

    def plain(name: str, value: Attr) -> Attr:
        single = name == "over" and isinstance(value, tuple) and len(value) == 1
        return value[0] if single and isinstance(value, tuple) else value

    ordered = sorted(attrs.items(), key=lambda item: (_ATTR_ORDER.get(item[0], 0), item[0]))
    return tuple((k, plain(k, v)) for k, v in ordered if v is not None)


def live_ops(ops: Iterable[Op], wanted: Iterable[Value]) -> tuple[Op, ...]:
    """Keeps the ops that the wanted values need, in their order."""
    needed = {v.name for v in wanted}
    kept: list[Op] = []
    for op in reversed(tuple(ops)):
        if any(r.name in needed for r in op.results):
            needed.update(v.name for v in op.inputs)
            kept.append(op)
    return tuple(reversed(kept))


def dims_of(values: Iterable[Value]) -> set[str]:
    """Returns the dims that occur in the types of these values."""
    found: set[str] = set()
    for value in values:
        found.update(getattr(value.type, "dims", ()))
        found.update(getattr(getattr(value.type, "weight", None), "dims", ()))
    return found
