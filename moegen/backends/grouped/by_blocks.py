"""Grouped products by blocks and by runs of blocks, in jax.numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moegen.backends.expressions import epilogue
from moegen.backends.grouped.common import GroupedKernel, experts_first, own_sizes, without
from moegen.backends.source import Emitter, aligned, dims_of, widened
from moegen.ir.program import Op
from moegen.ir.types import EXPERT
from moegen.kernels.grouped_dot import blocks, runs
from moegen.ops.linalg import einsum_spec


def _dot(function: Callable[..., Any]) -> Callable[[Emitter, Op], list[str]]:
    def write(e: Emitter, op: Op) -> list[str]:
        rows, weights, sizes, *extra = op.inputs
        out = dims_of(op.results[0])
        spec = einsum_spec(dims_of(rows), without(dims_of(weights), EXPERT), out)
        w = widened(experts_first(e, weights), weights, e.name(rows))
        args = f"{e.name(rows)}, {w}, {own_sizes(e, sizes)}"
        product = f'{e.use(function)}("{spec}", {args}, block={op.attr["block"]})'
        return epilogue(e, op, product, tuple(extra))

    return write


def _outer(function: Callable[..., Any]) -> Callable[[Emitter, Op], list[str]]:
    def write(e: Emitter, op: Op) -> list[str]:
        a, b, sizes = op.inputs
        out = dims_of(op.result)
        spec = einsum_spec(dims_of(a), dims_of(b), without(out, EXPERT))
        lead = (EXPERT, *without(out, EXPERT))
        args = f"{e.name(a)}, {e.name(b)}, {own_sizes(e, sizes)}, block={op.attr['block']}"
        made = f'{e.use(function)}("{spec}", {args}, shape={e.shape(lead, op.result)})'
        return [f"{e.name(op.result)} = {aligned(made, lead, out)}"]

    return write


BLOCKS = GroupedKernel(
    "blocks", _dot(blocks.grouped_dot_blocks), _outer(blocks.grouped_outer_blocks), (blocks,)
)
RUNS = GroupedKernel("runs", _dot(runs.grouped_dot_runs), _outer(runs.grouped_outer_runs), (runs,))
