"""Grouped products by Pallas kernels, called alike for TPUs and GPUs; epilogues run inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from moegen.backends.expressions import JNP_DTYPES, epilogue_texts
from moegen.backends.grouped.common import GroupedKernel, experts_first, outer_operands, own_sizes
from moegen.backends.source import Emitter, aligned, dims_of
from moegen.ir.program import Op, Value
from moegen.ir.types import CHOICE, EXPERT, Tensor
from moegen.ops.named import dims_tuple

Respell = Callable[[str], str]
"""Writes an expression of an epilogue in words that the kernel's compiler knows."""


def pallas_kernel(
    name: str,
    dot: Callable[..., Any],
    outer: Callable[..., Any],
    modules: tuple[ModuleType, ...],
    respell: Respell = lambda text: text,
    gathered: Callable[..., Any] | None = None,
) -> GroupedKernel:
    """A kernel whose functions take operands, `tile` and `interpret`, and two an epilogue."""

    def rows_first(e: Emitter, op: Op) -> list[str]:
        rows, *others = op.inputs
        return _dot(e, op, dot, [e.name(rows)], others, _settings(op), respell)

    def tokens_first(e: Emitter, op: Op) -> list[str]:
        assert gathered is not None
        x, source, *others = op.inputs
        settings = [f"choices={CHOICE}", *_settings(op)]
        return _dot(e, op, gathered, [e.name(x), e.name(source)], others, settings, respell)

    return GroupedKernel(
        name,
        rows_first,
        lambda e, op: _outer(e, op, outer),
        modules,
        tokens_first if gathered else None,
    )


def _dot(
    e: Emitter,
    op: Op,
    function: Callable[..., Any],
    first: list[str],
    others: Sequence[Value],
    settings: list[str],
    respell: Respell,
) -> list[str]:
    """A product of what `first` names with weights, sizes and the epilogue's operands."""
    weights, sizes, *extra = others
    (over,) = dims_tuple(op.attr["over"])
    if dims_of(weights)[-1] == over:
        settings.append("transposed=True")
    if "epilogue" in op.attr:
        names = ", ".join(["acc", *(f"c{i}" for i in range(len(extra)))])
        texts = [respell(t) for t in epilogue_texts(e, op, [f"c{i}" for i in range(len(extra))])]
        settings.append(f"epilogue=lambda {names}: {_tuple(texts)}")
        settings.append(f"dtypes={_tuple([_dtype(r) for r in op.results])}")
    flat = [_flat(e, v, dims_of(op.results[0])) for v in extra]
    operands = ", ".join([*first, experts_first(e, weights), own_sizes(e, sizes), *flat])
    left = (
        f"({e.results(op)},)" if "epilogue" in op.attr and len(op.results) == 1 else e.results(op)
    )
    return _call(left, e.use(function), operands, settings)


def _outer(e: Emitter, op: Op, function: Callable[..., Any]) -> list[str]:
    a, b = outer_operands(op)
    call = e.use(function)
    operands = ", ".join([e.name(a), e.name(b), own_sizes(e, op.inputs[2])])
    made = (EXPERT, dims_of(a)[1], dims_of(b)[1])
    lines = _call(e.name(op.result), call, operands, _settings(op))
    if (ordered := aligned(e.name(op.result), made, dims_of(op.result))) != e.name(op.result):
        lines.append(f"{e.name(op.result)} = {ordered}")
    return lines


def _settings(op: Op) -> list[str]:
    interpret = ["interpret=True"] if op.attr.get("interpret") else []
    return [f"tile={op.attr['tile']}", *interpret]


def _call(left: str, call: str, operands: str, settings: list[str]) -> list[str]:
    return [f"{left} = {call}(", f"    {operands},", *(f"    {s}," for s in settings), ")"]


def _flat(e: Emitter, value: Value, want: tuple[str, ...]) -> str:
    """The operand with both dims of the product, 1 where it has none, and its experts in front."""
    have = dims_of(value)
    if EXPERT in have:
        want = (EXPERT, *want)
    if len(have) == 2 and have == want:
        return e.name(value)
    shape = ", ".join(e.size(d, value) if d in have else "1" for d in want)
    ordered = e.aligned(value, tuple(d for d in want if d in have))
    return f"{ordered}.reshape({shape})"


def _dtype(value: Value) -> str:
    assert isinstance(value.type, Tensor)
    return JNP_DTYPES[value.type.dtype]


def _tuple(parts: list[str]) -> str:
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
