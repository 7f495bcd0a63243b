"""Targets: what a kind of device can do per second."""

from __future__ import annotations

from dataclasses import dataclass

from moegen.errors import ScheduleError, did_you_mean


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of device.

    Attributes:
      name: as in Schedule(target=...).
      platform: JAX's platform name.
      flops: floating point operations per second in matrix products, f32 on CPU, bf16 else.
      bytes: memory bytes per second.
      overhead: seconds to start one op.
      row_block: rows that share a weight matrix in the sorted format.
    """

    name: str
    platform: str
    flops: float
    bytes: float
    overhead: float
    row_block: int


TARGETS = {
    t.name: t
    for t in (
        Target("cpu", "cpu", 2.0e11, 2.5e10, 5e-6, 32),
        Target("tpu_v4", "tpu", 2.75e14, 1.23e12, 2e-6, 1),
        Target("tpu_v5e", "tpu", 1.97e14, 8.2e11, 2e-6, 1),
        Target("tpu_v5p", "tpu", 4.59e14, 2.77e12, 2e-6, 1),
        Target("tpu_v6e", "tpu", 9.18e14, 1.64e12, 2e-6, 1),
        Target("h100", "gpu", 9.89e14, 3.35e12, 3e-6, 1),
        Target("b200", "gpu", 2.25e15, 8.0e12, 3e-6, 1),
    )
}
"""Published peak rates (chip data sheets); the CPU's is the order of two server cores."""
DEFAULT = {"cpu": "cpu", "tpu": "tpu_v5e", "gpu": "h100", "cuda": "h100", "rocm": "h100"}
"""The target assumed for a JAX platform when none is named."""


def target_named(name: str) -> Target:
    """Returns the target of that name, or of that JAX platform."""
    name = DEFAULT.get(name, name)
    if name not in TARGETS:
        raise ScheduleError(
            f'target "{name}" is unknown{did_you_mean(name, TARGETS)}',
            fix=f"use one of {', '.join(TARGETS)}",
        )
    return TARGETS[name]
