"""The kernels of Pallas Triton as a choice: what they cannot run, and their tile."""

from __future__ import annotations

from collections.abc import Mapping

from moegen.ir.program import Op
from moegen.ir.types import EXPERT
from moegen.ops.epilogue import ops_of_epilogue
from moegen.ops.named import dims_tuple
from moegen.ops.parts import ROWS
from moegen.tune.operands import mismatch, tensors
from moegen.tune.target import Target

MULTIPLIED = ("bf16", "f16", "f32")
NOT_LOWERED = ("erf", "normal_cdf")
"""Elementwise ops that Pallas Triton, of jax 0.10.2 or 0.12, does not lower."""
LEAST, MOST = 16, 128
"""Rows or columns of a tile: what tensor cores multiply at once; what 8 warps hold in registers."""
DEEP, SLICES = 32, 4


def obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why the kernel cannot run a product on a target; empty if it can."""
    if reason := mismatch(op, MULTIPLIED, MULTIPLIED):
        return reason
    if missing := [name for name in ops_of_epilogue(op) if name in NOT_LOWERED]:
        return f"its epilogue has {missing[0]}, which Pallas Triton does not lower"
    return ""


def tile(op: Op, sizes: Mapping[str, int], target: Target) -> tuple[int, ...]:
    """The tile of a product in a program."""
    rows, experts = sizes[ROWS], sizes[EXPERT]
    (_, _, made), _ = tensors(op)
    if op.name == "grouped_outer":
        height, width = (sizes[d] for d in made.dims if d != EXPERT)
        return outer_tile(height, width)
    (over,) = dims_tuple(op.attr["over"])
    return dot_tile(rows, sizes[over], sizes[made.dims[-1]], experts)


def dot_tile(rows: int, depth: int, width: int, experts: int) -> tuple[int, int, int, int]:
    """Height and width of a tile of the result, depth of a slice, slices in flight.

    Not measured anywhere yet. No taller than an expert's mean load, so that tiles are not idle
    in most of their rows; ptxas spills nothing of any of them.
    """
    tall = fitting(rows // max(experts, 1))
    return (tall, fitting(width), min(DEEP, fitting(depth)), SLICES)


def outer_tile(height: int, width: int) -> tuple[int, int, int, int]:
    """Height and width of a tile of the result, rows of a slice, slices in flight."""
    return (fitting(height), fitting(width), DEEP, SLICES)


def fitting(length: int) -> int:
    """The power of two that covers a length, within what a tile may be."""
    return max(LEAST, min(MOST, 1 << (max(length, 1) - 1).bit_length()))
