"""The printer: programs as text that reads like the paper and parses back.

moe @name dims(G=2, S=16) (%x: f32[G, S, D]) {
%logits: f32[G, S, E] = dot(%x, %w, over="D")  // router.py:9
return y=%y
}
"""

from __future__ import annotations

import json
from typing import Any

from moegen.ir.program import Op, Operand, Program, Value

_COMMENT_COLUMN = 88


def format_attr(value: Any) -> str:
    """Prints an attribute as a literal: "text", 8, 0.5, true-like names, ("a", "b")."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        inner = ", ".join(format_attr(v) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def format_call(
    name: str, operands: tuple[Operand, ...], attrs: tuple[tuple[str, Any], ...]
) -> str:
    """Prints an op with the types of its operands, as error messages show it."""
    args = [f"{o}: {o.type}" if isinstance(o, Value) else str(o) for o in operands]
    args += [f"{k}={format_attr(v)}" for k, v in attrs]
    return f"{name}({', '.join(args)})"


def format_op(op: Op, *, location: bool = True) -> str:
    """Prints one line, without indentation."""
    left = ", ".join(f"{r}: {r.type}" for r in op.results)
    args = [str(o) for o in op.operands] + [f"{k}={format_attr(v)}" for k, v in op.attrs]
    line = f"{left} = {op.name}({', '.join(args)})"
    if location and op.location:
        line = f"{line:<{_COMMENT_COLUMN}}  // {op.location}"
    return line


def format_program(program: Program, *, locations: bool = True) -> str:
    """Prints a program; `parse` gives it back."""
    mesh = f" mesh({_sizes(program.mesh)})" if program.mesh else ""
    head = f"moe @{program.name} dims({_sizes(program.dims)}){mesh} ("
    head += f"\n    {_values(program.inputs)})"
    if program.cotangents:
        head += f"\n  grad ({_values(program.cotangents)})"
    lines = [head + " {"]
    lines += [f"  {format_op(op, location=locations)}" for op in program.ops]
    lines.append(f"  return {_named(program.outputs)}")
    if program.gradients:
        lines.append(f"  grad {_named(program.gradients)}")
    return "\n".join([*lines, "}", ""])


def _sizes(pairs: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{name}={size}" for name, size in pairs)


def _values(values: tuple[Value, ...]) -> str:
    return ", ".join(f"{v}: {v.type}" for v in values)


def _named(pairs: tuple[tuple[str, Value], ...]) -> str:
    return ", ".join(f"{n}={v}" for n, v in pairs)
