"""The table of grouped kernels: a new one is a file beside this one and a name here."""

from __future__ import annotations

from moegen.backends.grouped.by_blocks import BLOCKS, RUNS
from moegen.backends.grouped.common import GroupedKernel
from moegen.backends.grouped.native import NATIVE
from moegen.backends.grouped.pallas_gpu import PALLAS_GPU
from moegen.backends.grouped.pallas_tcgen05 import PALLAS_TCGEN05
from moegen.backends.grouped.pallas_tpu import PALLAS_TPU
from moegen.backends.grouped.pallas_triton import PALLAS_TRITON
from moegen.backends.grouped.ragged import RAGGED_DOT
from moegen.backends.source import Emitter, Template
from moegen.ir.program import Op

KERNELS: dict[str, GroupedKernel] = {
    k.name: k
    for k in (
        BLOCKS,
        RUNS,
        NATIVE,
        RAGGED_DOT,
        PALLAS_TPU,
        PALLAS_GPU,
        PALLAS_TCGEN05,
        PALLAS_TRITON,
    )
}
"""By the name that select_kernels writes."""


def _dot(e: Emitter, op: Op) -> list[str]:
    return KERNELS[op.attr["kernel"]].dot(e, op)


def _outer(e: Emitter, op: Op) -> list[str]:
    return KERNELS[op.attr["kernel"]].outer(e, op)


def _gathered(e: Emitter, op: Op) -> list[str]:
    write = KERNELS[op.attr["kernel"]].gathered
    assert write is not None
    return write(e, op)


TEMPLATES: dict[str, Template] = {
    "grouped_dot": _dot,
    "gathered_dot": _gathered,
    "grouped_outer": _outer,
}
MODULES = tuple(dict.fromkeys(m for k in KERNELS.values() for m in k.modules))
"""The files of kernels whose names values in the source must not take."""
