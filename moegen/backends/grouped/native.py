"""Grouped products by the custom call for CPUs.

Its functions are imported, not copied: the C++ behind them comes with moegen.
"""

from __future__ import annotations

from moegen.backends.expressions import epilogue
from moegen.backends.grouped.common import GroupedKernel, experts_first, outer_operands, own_sizes
from moegen.backends.source import Emitter, aligned, dims_of
from moegen.ir.program import Op
from moegen.ir.types import EXPERT
from moegen.kernels.grouped_dot import native
from moegen.ops.named import dims_tuple


def _imported(e: Emitter, name: str) -> str:
    e.imports[f"from {native.__name__} import {name}"] = None
    return name


def _dot(e: Emitter, op: Op) -> list[str]:
    rows, weights, sizes, *extra = op.inputs
    call = _imported(e, native.grouped_dot_native.__name__)
    turned = ", transposed=True" if dims_of(weights)[-1:] == dims_tuple(op.attr["over"]) else ""
    operands = f"{e.name(rows)}, {experts_first(e, weights)}, {own_sizes(e, sizes)}"
    return epilogue(e, op, f"{call}({operands}{turned})", tuple(extra))


def _outer(e: Emitter, op: Op) -> list[str]:
    a, b = outer_operands(op)
    call = _imported(e, native.grouped_outer_native.__name__)
    made = f"{call}({e.name(a)}, {e.name(b)}, {own_sizes(e, op.inputs[2])})"
    order = (EXPERT, dims_of(a)[1], dims_of(b)[1])
    return [f"{e.name(op.result)} = {aligned(made, order, dims_of(op.result))}"]


NATIVE = GroupedKernel("native", _dot, _outer, (native,))
