"""Which operands a kernel of grouped products can multiply and read."""

from __future__ import annotations

from collections.abc import Sequence

from moegen.ir.program import Op
from moegen.ir.types import Tensor


def tensors(op: Op) -> tuple[list[Tensor], list[Tensor]]:
    """The types of a product, rows, weights and result; and what its epilogue reads and makes."""
    given = [v.type for v in op.inputs if isinstance(v.type, Tensor)]
    made = [v.type for v in op.results if isinstance(v.type, Tensor)]
    return [*given[:2], made[0]], [*given[3:], *made]


def wrong_ranks(op: Op) -> str:
    """Why a product of lists of rows is not what an op is, or ""."""
    ranks = [len(t.dims) for t in tensors(op)[0]]
    wanted = [2, 3, 2] if op.name == "grouped_dot" else [2, 2, 3]
    return "" if ranks == wanted else f"operands and result have {ranks} dims, it takes {wanted}"


def mismatch(op: Op, multiplied: Sequence[str], read: Sequence[str]) -> str:
    """Why a kernel that multiplies some dtypes and reads some cannot run a product, or ""."""
    if reason := wrong_ranks(op):
        return reason
    (rows, weights, _), moved = tensors(op)
    if rows.dtype not in multiplied:
        return f"rows are {rows.dtype}, it takes {', '.join(multiplied)}"
    if weights.dtype != rows.dtype:
        return f"weights are {weights.dtype}, it takes the dtype of the rows, {rows.dtype}"
    if other := sorted({t.dtype for t in moved} - set(read)):
        return f"an operand or result is {other[0]}, it takes {', '.join(read)}"
    return ""
