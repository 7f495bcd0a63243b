"""The Pallas kernels for GPUs as a choice: what they cannot run, and their tile."""

from __future__ import annotations

from collections.abc import Mapping

from moegen.ir.program import Op
from moegen.ir.types import EXPERT
from moegen.ops.epilogue import ops_of_epilogue
from moegen.ops.parts import ROWS
from moegen.tune.operands import mismatch, tensors
from moegen.tune.target import Target

LEAST_ROWS = 64
"""Rows of a wgmma: an expert's rows start at a multiple of it."""
SWIZZLED = 64
"""Elements of two bytes in the 128 that TMA moves as one: widths are multiples of it."""
SLICES = 4
MULTIPLIED = ("bf16", "f16")
READ = (*MULTIPLIED, "f32")
NOT_LOWERED = ("erf", "logical_not", "mod", "normal_cdf", "softplus", "sqrt")
"""Elementwise ops that Mosaic GPU, of jax 0.10.2 or 0.12, does not lower."""
OTHERS = (ROWS, EXPERT)
WITHOUT_WGMMA = {"a100": "pallas_triton", "b200": "pallas_tcgen05"}
"""Targets, and the kernel that is for them."""


def obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why the kernel cannot run a product on a target; empty if it can."""
    if target.name in WITHOUT_WGMMA:
        other = WITHOUT_WGMMA[target.name]
        return f"it multiplies by wgmma, which {target.name} does not have; {other} is for it"
    return unlike_mosaic(op, sizes, LEAST_ROWS)


def unlike_mosaic(op: Op, sizes: Mapping[str, int], least: int) -> str:
    """Why a kernel by Mosaic GPU, with tiles of `least` rows, cannot run a product, or ""."""
    if reason := mismatch(op, MULTIPLIED, READ):
        return reason
    products, _ = tensors(op)
    if odd := [d for t in products for d in t.dims if d not in OTHERS and sizes[d] % SWIZZLED]:
        return f"{odd[0]}={sizes[odd[0]]} is not a multiple of {SWIZZLED}"
    if op.attr.get("block", 1) % least:
        return (
            f"an expert's rows start at a multiple of {op.attr.get('block', 1)}, it takes "
            f"multiples of {least}: set Schedule(block={least})"
        )
    if missing := [name for name in ops_of_epilogue(op) if name in NOT_LOWERED]:
        return f"its epilogue has {missing[0]}, which Mosaic GPU does not lower"
    return ""


def tile(op: Op, sizes: Mapping[str, int], target: Target) -> tuple[int, ...]:
    """The tile of a product in a program."""
    height, width = widths(op, sizes)
    if op.name == "grouped_outer":
        return outer_tile(height, width)
    _, moved = tensors(op)
    return dot_tile(width, op.attr.get("block", 1), sum(ROWS in t.dims for t in moved) - 1)


def widths(op: Op, sizes: Mapping[str, int]) -> tuple[int, int]:
    """The last two sizes of a product's result."""
    (_, _, made), _ = tensors(op)
    height, width = (sizes[d] for d in made.dims[-2:])
    return height, width


def dot_tile(width: int, block: int, held: int) -> tuple[int, int, int, int]:
    """Height and width of a tile of the result, depth of a slice, slices in flight.

    Not measured anywhere yet. A warpgroup holds a tile in registers, 128 by 128 in half of
    them; each of the tiles that the epilogue reads or makes beside it, `held`, may take as
    many again, and ptxas spills them then.
    """
    tall = 64 if held or block % 128 else 128
    return (tall, min(128, width), SWIZZLED, SLICES)


def outer_tile(height: int, width: int) -> tuple[int, int, int, int]:
    """Height and width of a tile of the result, rows of a slice, slices in flight."""
    return (min(128, height), min(128, width), LEAST_ROWS, SLICES)
