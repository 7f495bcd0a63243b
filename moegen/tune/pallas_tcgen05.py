"""The Pallas kernels for Blackwell GPUs as a choice: what they cannot run, and their tile."""

from __future__ import annotations

from collections.abc import Mapping

from moegen.ir.program import Op
from moegen.tune.pallas_gpu import SWIZZLED, unlike_mosaic, widths
from moegen.tune.target import Target

ROWS_OF_TILE = 128
"""Lanes of tensor memory: an expert's rows start at a multiple of it."""
SLICES = 3
"""In flight; a fourth of 128 and of 256 rows would leave no shared memory for results."""


def obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why the kernel cannot run a product on a target; empty if it can."""
    if target.platform == "gpu" and target.name != "b200":
        return f"it multiplies by tcgen05, which {target.name} does not have"
    return unlike_mosaic(op, sizes, ROWS_OF_TILE)


def tile(op: Op, sizes: Mapping[str, int], target: Target) -> tuple[int, ...]:
    """The tile of a product in a program."""
    height, width = widths(op, sizes)
    return outer_tile(height, width) if op.name == "grouped_outer" else dot_tile(width)


def dot_tile(width: int) -> tuple[int, int, int, int]:
    """Height and width of a tile of the result, depth of a slice, slices in flight.

    Not measured anywhere yet. The width is a power of two, as columns of tensor memory are taken.
    """
    wide = 256 if width > 128 else 128 if width > SWIZZLED else SWIZZLED
    return (ROWS_OF_TILE, wide, SWIZZLED, SLICES)


def outer_tile(height: int, width: int) -> tuple[int, int, int, int]:
    """Height and width of a tile of the result, rows of a slice, slices in flight."""
    return dot_tile(width)
