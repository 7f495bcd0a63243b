"""The kernel model: which kernel runs a grouped product fastest, with which tile, in what time.

Each kernel of a device has a few fitted rates, kept in data/kernel_rates.json with their
source; `python -m moegen.tune.fit` fits and judges them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from moegen.tune.gpu_model import GpuRates, gpu_footprint, gpu_seconds
from moegen.tune.problem import DIRECTIONS, Problem
from moegen.tune.target import Target
from moegen.tune.tpu_model import TpuRates, tpu_footprint, tpu_seconds, tpu_tiles

KERNELS = {
    "tpu": ("xla", "pallas_tpu", "pallas_tpu_v2"),
    "gpu": ("xla", "triton", "mosaic_gpu"),
}
"""Kernels that are modelled, by platform: jax.lax.ragged_dot and tokamax's four."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on a device.

    Attributes:
      name: one of KERNELS.
      rates: what it reaches, the fitted parameters.
      tile: the tile it is modelled with if it picks its own; empty if it is searched.
      tiles: the blocks to search on GPU; on TPU they follow from the problem's widths.
      on_chip: bytes a tile may take.
      directions: those it can run.
      dense: directions in which it multiplies every row with every group's weights.
    """

    name: str
    rates: TpuRates | GpuRates
    tile: tuple[float, ...] = ()
    tiles: tuple[tuple[float, ...], ...] = ()
    on_chip: float = float("inf")
    directions: tuple[str, ...] = DIRECTIONS
    dense: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A kernel's predicted seconds with the tile it would take; no tile: the kernel's own."""

    kernel: str
    tile: tuple[int, ...]
    seconds: float


def estimates(problem: Problem, target: Target) -> tuple[Estimate, ...]:
    """Predicts every kernel of the target that can run a product, fastest first.

    A target without fitted rates of its own takes those of its nearest relative (NEAREST).
    """
    kernels = kernels_of(target.name)
    able = [k for k in kernels.values() if problem.direction in k.directions]
    found = [estimate(problem, target, kernel) for kernel in able]
    return tuple(sorted(found, key=lambda e: e.seconds))


def estimate(problem: Problem, target: Target, kernel: Kernel) -> Estimate:
    """Predicts one kernel with the tile that the model likes best."""
    if kernel.tile or problem.direction in kernel.dense:
        return Estimate(kernel.name, (), float(predict(problem, target, kernel, kernel.tile)))
    tiles = candidates(problem, kernel)
    seconds = predict(problem, target, kernel, tiles)
    best = int(np.argmin(seconds))
    return Estimate(kernel.name, tuple(map(int, tiles[best])), float(seconds[best]))


def predict(problem: Problem, target: Target, kernel: Kernel, tiles: Any) -> Any:
    """Seconds of a kernel with each of the given tiles."""
    if problem.direction in kernel.dense:
        share = getattr(kernel.rates, problem.direction)
        rate = target.rate(problem.dtype) * share
        return problem.flops * problem.groups / rate + kernel.rates.launch
    if isinstance(kernel.rates, TpuRates):
        return tpu_seconds(problem, target, tiles, kernel.rates)
    return gpu_seconds(problem, target, tiles, kernel.rates)


def candidates(problem: Problem, kernel: Kernel) -> np.ndarray:
    """Tiles that fit into the chip's memory, [count, 3] on TPU and [count, 4] on GPU."""
    tpu = isinstance(kernel.rates, TpuRates)
    tiles = tpu_tiles(problem) if tpu else np.array(kernel.tiles, float)
    size = tpu_footprint(problem, tiles) if tpu else gpu_footprint(problem, tiles)
    fits = size <= kernel.on_chip
    return tiles[fits] if fits.any() else tiles[[int(np.argmin(size))]]


NEAREST = {"tpu_v4": "tpu_v5p", "h200": "h100"}
"""Devices without published times, and the relative whose shares of the peak they are given."""


@cache
def kernels_of(target: str) -> Mapping[str, Kernel]:
    """The kernels of a target by name; none for a CPU."""
    devices = json.loads(_data())["devices"]
    fitted = devices.get(NEAREST.get(target, target), {})
    return {name: read_kernel(name, found) for name, found in fitted.items()}


def read_kernel(name: str, found: Mapping[str, Any]) -> Kernel:
    """One entry of data/kernel_rates.json."""
    kind = TpuRates if name in KERNELS["tpu"] and "fill" in found["rates"] else GpuRates
    return Kernel(
        name,
        kind(**found["rates"]),
        tuple(found.get("tile", ())),
        tuple(map(tuple, found.get("tiles", ()))),
        found.get("on_chip", float("inf")),
        tuple(found.get("directions", DIRECTIONS)),
        tuple(found.get("dense", ())),
    )


def write_kernel(kernel: Kernel) -> dict[str, Any]:
    """The entry of a kernel in data/kernel_rates.json."""
    found: dict[str, Any] = {"rates": asdict(kernel.rates), "directions": kernel.directions}
    for name in ("tile", "tiles", "dense"):
        if getattr(kernel, name):
            found[name] = getattr(kernel, name)
    if kernel.on_chip != float("inf"):
        found["on_chip"] = int(kernel.on_chip)
    return found


def _data() -> str:
    folder = resources.files("moegen.tune").joinpath("data")
    return folder.joinpath("kernel_rates.json").read_text(encoding="utf-8")
