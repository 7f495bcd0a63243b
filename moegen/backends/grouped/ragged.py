"""Grouped products by XLA's ragged dot."""

from __future__ import annotations

from moegen.backends.expressions import epilogue
from moegen.backends.grouped.common import GroupedKernel, outer_operands, own_sizes
from moegen.backends.source import Emitter, dims_of, widened
from moegen.ir.program import Op
from moegen.ir.types import EXPERT
from moegen.kernels.grouped_dot import ragged
from moegen.ops.named import dims_tuple


def _dot(e: Emitter, op: Op) -> list[str]:
    rows, weights, sizes, *extra = op.inputs
    (over,) = dims_tuple(op.attr["over"])
    w = e.aligned(weights, (EXPERT, over, dims_of(op.results[0])[1]))
    w = widened(w, weights, e.name(rows))
    call = e.use(ragged.grouped_dot_ragged)
    return epilogue(e, op, f"{call}({e.name(rows)}, {w}, {own_sizes(e, sizes)})", tuple(extra))


def _outer(e: Emitter, op: Op) -> list[str]:
    args = ", ".join([*map(e.name, outer_operands(op)), own_sizes(e, op.inputs[2])])
    return [f"{e.name(op.result)} = {e.use(ragged.grouped_outer_ragged)}({args})"]


RAGGED_DOT = GroupedKernel("ragged_dot", _dot, _outer, (ragged,))
