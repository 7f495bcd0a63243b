"""The Pallas kernels for TPUs as a choice: what they cannot run, and their tile."""

from __future__ import annotations

from collections.abc import Mapping

from moegen.ir.program import Op
from moegen.ir.types import EXPERT, GROUP, NARROW, TOKEN, Tensor
from moegen.kernels.grouped_dot.tiles_tpu import dot_tile, gathered_tile, outer_tile
from moegen.ops.epilogue import ops_of_epilogue
from moegen.ops.gathered import gather_before
from moegen.ops.named import dims_tuple
from moegen.ops.parts import ROWS
from moegen.tune.operands import wrong_ranks
from moegen.tune.target import Target

DTYPES = {"bf16": "bfloat16", "f32": "float32"}
UNLOWERED = ("normal_cdf",)
"""Elementwise ops that Pallas has no lowering of for TPUs; every other one compiles, by a test."""
MOST_NUMBERS = 2**17
"""Rows that the kernel can gather: their numbers take half of the 1 MiB of SMEM."""
INTERPRETED = 16 * 1024**2
"""Bytes of VMEM assumed where the kernel is interpreted: the least that a TPU has."""


def obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why the kernel cannot run a product on a target; empty if it can."""
    if op.name == "gathered_dot":
        return _gather_obstacle(op, sizes, target)
    if reason := wrong_ranks(op):
        return reason
    types = [v.type for v in (*op.inputs, *op.results) if isinstance(v.type, Tensor)]
    narrow = op.name == "grouped_dot" and types[1].dtype in NARROW
    floats = [t for t in types if t.dims != (EXPERT,) or t.is_float]
    floats = [t for t in floats if not (narrow and t is types[1])]
    if other := sorted({t.dtype for t in floats} - DTYPES.keys()):
        return f"an operand or result is {other[0]}, it takes {' and '.join(DTYPES)}"
    if lacking := [name for name in ops_of_epilogue(op) if name in UNLOWERED]:
        return f"its epilogue has {lacking[0]}, which Pallas does not know on TPUs"
    if not tile(op, sizes, target):
        return f"no tile of it fits into the {vmem_for(target) // 1024**2} MiB of VMEM it may take"
    return ""


def _gather_obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why the kernel cannot gather the rows of a product."""
    product, x = gather_before(op)[1], op.inputs[0].type
    if reason := obstacle(product, sizes, target):
        return reason
    if getattr(op.inputs[2].type, "dtype", "") in NARROW:
        return "weights are narrow, and the product that converts them gathers no rows"
    if op.attr["block"] != 1:
        return f"an expert's rows are padded to {op.attr['block']}, and it gathers no rows of zeros"
    if sizes[GROUP] * sizes[TOKEN] % 2 and getattr(x, "dtype", "") == "bf16":
        return "the number of tokens is odd, and it copies rows of bf16 in pairs"
    if sizes[ROWS] > MOST_NUMBERS:
        return f"there are more than {MOST_NUMBERS} rows to number"
    if not tile(op, sizes, target):
        return "no tile of it fits into VMEM beside the rows on their way"
    return ""


def tile(op: Op, sizes: Mapping[str, int], target: Target) -> tuple[int, ...]:
    """The tile of a product; empty if none fits into the target's VMEM."""
    choose = gathered_tile if op.name == "gathered_dot" else dot_tile
    op = gather_before(op)[1] if op.name == "gathered_dot" else op
    a, b, *_ = (v.type for v in op.inputs)
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    rows, experts, vmem = sizes[ROWS], sizes[EXPERT], vmem_for(target)
    if op.name == "grouped_outer":
        out = [d for d in _dims(op.results[0].type) if d != EXPERT]
        return outer_tile(rows, sizes[out[0]], sizes[out[1]], experts, DTYPES[a.dtype], vmem)
    (over,) = dims_tuple(op.attr["over"])
    width = _dims(op.results[0].type)[1]
    by_row = [v.type for v in op.inputs[3:] if ROWS in _dims(v.type)]
    moved = [t for t in (*by_row, *(r.type for r in op.results)) if isinstance(t, Tensor)]
    dtypes = tuple(DTYPES[t.dtype] for t in (a, *moved))
    turned = b.dims[-1] == over
    return choose(rows, sizes[over], sizes[width], experts, dtypes, vmem, turned)


def vmem_for(target: Target) -> int:
    """Bytes of VMEM that a kernel may take on a target: a part is left to the compiler."""
    return (target.on_chip or INTERPRETED) * 3 // 4


def _dims(type_: object) -> tuple[str, ...]:
    return type_.dims if isinstance(type_, Tensor) else ()
