"""The schedule: everything about how a layer runs, apart from what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from moegen.errors import ScheduleError, did_you_mean
from moegen.passes.choose_format import FORMATS
from moegen.passes.rematerialize import SAVES
from moegen.tune.choose import KERNELS
from moegen.tune.target import Target, target_named


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a layer is lowered; also part of the key of the compilation cache.

    Attributes:
      format: "auto", "onehot", "slots" or "sorted": how routing decisions are stored.
      kernel: "auto", "runs", "blocks" or "ragged_dot": what runs grouped products (sorted format).
      block: rows that an expert's rows are padded to a multiple of in the sorted format; None:
        about an eighth of an expert's mean load on CPUs, else the target's.
      save: "all" keeps for the backward what it reads; "least" keeps the fewest bytes from which
        that follows without a product, so that activations are computed and rows gathered again.
      target: a name of `moegen.tune.target.TARGETS`, or None for the default JAX device.
      mesh: devices to shard over; only None (one device) is supported so far.

    Raises:
      ScheduleError: for an unknown value, naming the nearest one.
    """

    format: str = "auto"
    kernel: str = "auto"
    block: int | None = None
    save: str = "all"
    target: str | None = None
    mesh: Any = None

    def __post_init__(self) -> None:
        _one_of("format", self.format, ("auto", *FORMATS))
        _one_of("kernel", self.kernel, KERNELS)
        _one_of("save", self.save, SAVES)
        if self.block is not None and self.block < 1:
            raise ScheduleError(f"block={self.block}", fix="rows per block are 1 or more")
        if self.target is not None:
            target_named(self.target)

    def resolve_target(self) -> Target:
        """Returns the target that is meant, the default device's if none is named."""
        return target_named(self.target or jax.default_backend())


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ScheduleError(
            f'{field}="{value}" is unknown{did_you_mean(value, known)}',
            fix=f"use one of {', '.join(known)}",
        )
