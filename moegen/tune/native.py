"""Where the custom call for CPUs can run a grouped product."""

from __future__ import annotations

from collections.abc import Mapping

from moegen.ir.program import Op
from moegen.ir.types import Tensor
from moegen.kernels.grouped_dot import native
from moegen.tune.target import Target

DTYPES = ("f32", "bf16")


def obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why it cannot run a product; empty if it can, and then it has been compiled."""
    if target.platform != "cpu":
        return f"it is for cpu, the target is {target.name}"
    tensors = [v.type for v in (*op.inputs[:2], op.results[0]) if isinstance(v.type, Tensor)]
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"operands and result are {', '.join(sorted(dtypes))}, it takes f32 or bf16"
    ranks = [len(t.dims) for t in tensors]
    wanted = [2, 3, 2] if op.name == "grouped_dot" else [2, 2, 3]
    if ranks != wanted:
        return f"operands and result have {ranks} dims, it takes {wanted}"
    return native.obstacle()
