"""The kernel that exchanges slots while it multiplies: what it cannot run, and its tile."""

from __future__ import annotations

from collections.abc import Mapping

from moegen.errors import LoweringError
from moegen.ir.program import Op
from moegen.ir.types import CAPACITY, GROUP, Tensor
from moegen.kernels.exchanged_dot_tpu import exchanged_tile
from moegen.ops.exchanged import depth_and_width
from moegen.passes.select_kernels import KernelChoice
from moegen.tune.pallas_tpu import DTYPES, vmem_for
from moegen.tune.target import Target

LANES = 128


def choice(
    op: Op, sizes: Mapping[str, int], target: Target, interpret: bool = False
) -> KernelChoice:
    """The kernel of an `exchanged_dot`, with its tile.

    Args:
      op: the product.
      sizes: of the dims on one device.
      target: the device.
      interpret: whether it is to be run by Pallas's interpreter where there is no TPU.

    Raises:
      LoweringError: if it cannot run the product.
    """
    reason, fix = obstacle(op, sizes, target), "use another Schedule(overlap=...)"
    foreign = target.platform != "tpu"
    if not reason and foreign and not interpret:
        reason = f"it is for tpu, the target is {target.name}"
        fix = "name such a target, or use Schedule(interpret=True) to have it interpreted here"
    if reason:
        raise LoweringError(
            f"exchanged_dot_tpu cannot run it: {reason}", op=op.name, location=op.location, fix=fix
        )
    return KernelChoice("pallas_tpu", tile(op, sizes, target), "schedule", interpret and foreign)


def obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why the kernel cannot run an `exchanged_dot` on a target; empty if it can.

    Args:
      op: the product.
      sizes: of the dims on one device.
      target: the device.
    """
    types = [v.type for v in (*op.inputs, *op.results) if isinstance(v.type, Tensor)]
    if other := sorted({t.dtype for t in types} - DTYPES.keys()):
        return f"an operand is {other[0]}, it takes {' and '.join(DTYPES)}"
    for dim in depth_and_width(op):
        if sizes[dim] % LANES:
            return f"{dim}={sizes[dim]} is not a multiple of {LANES}, the lanes of a register"
    if not tile(op, sizes, target):
        rows = _rows(op, sizes)
        return f"the {rows} slots of an expert on a device cannot be cut into tiles that fit VMEM"
    return ""


def tile(op: Op, sizes: Mapping[str, int], target: Target) -> tuple[int, ...]:
    """Rows and columns of a step; empty if there are none that fit."""
    depth, width = (sizes[dim] for dim in depth_and_width(op))
    dtype = DTYPES[getattr(op.results[0].type, "dtype", "")]
    return exchanged_tile(_rows(op, sizes), depth, width, dtype, vmem_for(target))


def _rows(op: Op, sizes: Mapping[str, int]) -> int:
    """Slots that one device has for one expert; `sizes` are of where they arrive."""
    devices: int = op.attr["devices"]
    return sizes[GROUP] // devices * sizes[CAPACITY]
