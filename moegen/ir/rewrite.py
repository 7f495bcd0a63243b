"""The rewriter: one walk over a program, one rule, and a clean program at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.program import Attr, Op, Operand, Program, Value, live_ops, make_attrs

Rule = Callable[[Builder, Op], Sequence[Operand] | None]
"""Given an op with rewritten operands: None keeps it; otherwise one operand per result."""


def rewrite(program: Program, rule: Rule) -> Program:
    """Rebuilds a program, replacing what the rule replaces, then drops dead ops.

    Ops that a rule emits inherit the line and, by the hint the rule gives, the name of the
    op they replace. Types are inferred anew, so a rule may change the type of a value as
    long as every later op still accepts it.
    """
    current: list[Op] = []
    b = Builder(Dims(program.sizes), locate=lambda: current[-1].location if current else None)
    known: dict[str, Operand] = {v.name: v for v in program.arguments}
    for value in program.arguments:
        b.fresh(value.name)
    for op in program.ops:
        mapped = replace(op, operands=tuple(resolve(known, o) for o in op.operands))
        current.append(mapped)
        results = rule(b, mapped)
        if results is None:
            results = keep(b, mapped)
        for old, new in zip(op.results, results, strict=True):
            known[old.name] = new
    return close(program, b, known)


def keep(b: Builder, op: Op) -> tuple[Value, ...]:
    """Emits the op as it is, under its names where they are free."""
    return b.emit(
        op.name,
        *op.operands,
        hints=[r.name for r in op.results],
        location=op.location,
        **op.attr,
    )


def resolve(known: dict[str, Operand], operand: Operand) -> Operand:
    """Maps an operand of the old program to the new one."""
    return known[operand.name] if isinstance(operand, Value) else operand


def close(program: Program, b: Builder, known: dict[str, Operand]) -> Program:
    """Ends a rewrite: maps what is returned, drops dead ops, keeps the arguments."""

    def value(v: Value) -> Value:
        new = resolve(known, v)
        return new if isinstance(new, Value) else b.one("full", new, dims=(), dtype=_dtype(v))

    outputs = tuple((n, value(v)) for n, v in program.outputs)
    gradients = tuple((n, value(v)) for n, v in program.gradients)
    wanted = [v for _, v in outputs + gradients]
    return program.with_(
        dims=b.dims.items(),
        ops=live_ops(b.ops, wanted),
        outputs=outputs,
        gradients=gradients,
    )


def set_attrs(op: Op, **changes: Attr) -> Op:
    """Returns the op with some attributes set; None removes one."""
    return replace(op, attrs=make_attrs({**op.attr, **changes}))


def _dtype(value: Value) -> str:
    return getattr(value.type, "dtype", "f32")


def rename(program: Program, names: Mapping[str, str]) -> Program:
    """Gives values the names in the map, numbered where taken; arguments keep theirs."""
    fresh: dict[str, Value] = {v.name: v for v in program.arguments}
    taken = set(fresh)
    reserved = set(names.values())

    def named(value: Value) -> Value:
        hint = names.get(value.name, value.name)
        name, n = hint, 0
        while name in taken or (name in reserved and value.name not in names):
            n += 1
            name = f"{hint}_{n}"
        taken.add(name)
        fresh[value.name] = replace(value, name=name)
        return fresh[value.name]

    ops = tuple(
        replace(
            op,
            operands=tuple(fresh[o.name] if isinstance(o, Value) else o for o in op.operands),
            results=tuple(named(r) for r in op.results),
        )
        for op in program.ops
    )
    return program.with_(
        ops=ops,
        outputs=tuple((n, fresh[v.name]) for n, v in program.outputs),
        gradients=tuple((n, fresh[v.name]) for n, v in program.gradients),
    )
