"""Where the custom call for CPUs can run a grouped product, and where "auto" may take it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from moegen.errors import ScheduleError, did_you_mean
from moegen.ir.program import Op
from moegen.kernels.grouped_dot import native
from moegen.tune.operands import tensors, wrong_ranks
from moegen.tune.target import Target

NAME = "native"
DTYPES = ("f32", "bf16")
BLOCK = 1
"""Rows that an expert's are padded to a multiple of: none are needed."""
VARIABLE, SETTINGS = "MOEGEN_NATIVE", ("auto", "off")
"""The environment's word on whether "auto" may take it, "auto" if it says nothing."""


def barred() -> str:
    """Why "auto" may not take it on this machine's CPU; empty if it may.

    Raises:
      ScheduleError: if the environment says anything but SETTINGS.
    """
    value = os.environ.get(VARIABLE) or SETTINGS[0]
    if value not in SETTINGS:
        raise ScheduleError(
            f'the environment has {VARIABLE}="{value}"{did_you_mean(value, SETTINGS)}',
            fix=f"set it to {' or '.join(SETTINGS)}, or to nothing",
        )
    return f"{VARIABLE}=off" if value == "off" else ""


def missing() -> str:
    """Why it cannot be had here; empty if it can, and then it has been compiled."""
    return native.obstacle()


def obstacle(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why it cannot run a product here; empty if it can, and then it has been compiled."""
    return misfit(op, sizes, target) or missing()


def misfit(op: Op, sizes: Mapping[str, int], target: Target) -> str:
    """Why it cannot run a product anywhere; empty if it can."""
    if target.platform != "cpu":
        return f"it is for cpu, the target is {target.name}"
    dtypes = {t.dtype for t in tensors(op)[0]}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"operands and result are {', '.join(sorted(dtypes))}, it takes f32 or bf16"
    return wrong_ranks(op)
