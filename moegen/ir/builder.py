"""Builds programs op by op: infers types, keeps names unique, points errors at lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moegen.errors import Location, MoegenError, ShapeError
from moegen.ir import registry
from moegen.ir.dims import Dims
from moegen.ir.placement import placed_dims
from moegen.ir.program import Literal, Op, Operand, Program, Value, make_attrs
from moegen.ir.text import format_call
from moegen.ir.types import Tensor, Type


class Builder:
    """A program under construction.

    `locate` gives the author's line for ops that are emitted without one.
    """

    def __init__(self, dims: Dims, locate: Callable[[], Location | None] = lambda: None):
        self.dims = dims
        self.ops: list[Op] = []
        self._taken: set[str] = set()
        self._locate = locate

    def argument(self, name: str, type_: Type) -> Value:
        """Declares a value that comes from outside."""
        return Value(self.fresh(name), type_)

    def fresh(self, hint: str) -> str:
        """Returns `hint`, or `hint_1`, `hint_2`... where it is taken."""
        name, n = hint, 0
        while name in self._taken:
            n += 1
            name = f"{hint}_{n}"
        self._taken.add(name)
        return name

    def emit(
        self,
        name: str,
        *operands: Operand | float,
        hints: Sequence[str] = (),
        location: Location | None = None,
        **attrs: Any,
    ) -> tuple[Value, ...]:
        """Appends one op and returns its results; errors carry the op and the line."""
        args = tuple(o if isinstance(o, Value | Literal) else Literal(o) for o in operands)
        where = location or self._locate()
        frozen = make_attrs(attrs)
        types = infer_types(self.dims, name, args, frozen, where)
        names = [hints[i] if i < len(hints) else name for i in range(len(types))]
        results = tuple(Value(self.fresh(n), t) for n, t in zip(names, types, strict=True))
        self.ops.append(Op(name, args, frozen, results, where))
        return results

    def one(self, name: str, *operands: Operand | float, hint: str = "", **kwargs: Any) -> Value:
        """Emits an op with a single result."""
        (value,) = self.emit(name, *operands, hints=(hint,) if hint else (), **kwargs)
        return value

    def fit(self, value: Value, type_: Tensor, hint: str = "") -> Value:
        """Sums, broadcasts and reorders a gradient until it has this type."""
        have = _tensor(value)
        extra = tuple(d for d in have.dims if d not in type_.dims)
        if extra:
            value = self.one("sum", value, over=extra, hint=hint)
        if _tensor(value).dims != type_.dims:
            new = (d for d in type_.dims if d not in _tensor(value).dims)
            where = placed_dims(new, type_.placement) or None
            value = self.one("broadcast", value, dims=type_.dims, placed=where, hint=hint)
        if _tensor(value).dtype != type_.dtype:
            value = self.one("cast", value, dtype=type_.dtype, hint=hint)
        return value

    def program(
        self,
        name: str,
        inputs: Iterable[Value],
        outputs: Iterable[tuple[str, Value]],
        cotangents: Iterable[Value] = (),
        gradients: Iterable[tuple[str, Value]] = (),
    ) -> Program:
        """Closes the program."""
        return Program(
            name,
            self.dims.items(),
            tuple(inputs),
            tuple(self.ops),
            tuple(outputs),
            tuple(cotangents),
            tuple(gradients),
        )


def infer_types(
    dims: Dims,
    name: str,
    operands: tuple[Operand, ...],
    attrs: tuple[tuple[str, Any], ...],
    location: Location | None = None,
) -> tuple[Type, ...]:
    """Runs an op's type rule; a MoegenError gets the printed op and the author's line."""
    try:
        definition = registry.lookup(name)
        given = (o.type if isinstance(o, Value) else o for o in operands)
        return tuple(definition.types(dims, *given, **dict(attrs)))
    except MoegenError as error:
        error.what = error.what if error.op else f"{name}: {error.what}"
        raise error.located(format_call(name, operands, attrs), location) from None
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        why = f"no attribute {error}" if isinstance(error, KeyError) else error
        raise ShapeError(
            f"{name}: operands or attributes do not fit the op ({why})",
            op=format_call(name, operands, attrs),
            location=location,
            fix="see the op's docstring for what it takes",
        ) from None


def _tensor(value: Value) -> Tensor:
    if not isinstance(value.type, Tensor):
        raise ShapeError(f"{value} is a {value.type}, not a tensor")
    return value.type
