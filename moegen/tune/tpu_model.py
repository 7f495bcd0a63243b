"""Seconds of a grouped product on a TPU: a grid of tiles, each the longer of MXU and HBM.

The schedule is the one of megablox and its descendants: for every tile of columns walk over
the row tiles of all groups, for each over the contracted width. A block whose index does not
change is not fetched again, so with the whole width in one tile a group's weights are fetched
once, and that fetch can hide behind one step only. All functions take arrays of tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moegen.tune.problem import Problem
from moegen.tune.target import Target

LANES = 128


@dataclass(frozen=True, slots=True)
class TpuRates:
    """What a kernel reaches on a device; the parameters of the model.

    Attributes:
      fwd, dlhs, drhs: share of the peak rate of the MXU, per direction.
      bandwidth: share of the HBM's.
      fill: rows of time that a weight tile takes to load into the MXU.
      turn: the same in dlhs, where weights are transposed on the way.
      step: seconds of one grid step.
      accumulate: seconds to add one f32 element to the accumulator.
      launch: seconds of the whole call.
    """

    fwd: float = 0.8
    dlhs: float = 0.8
    drhs: float = 0.8
    bandwidth: float = 0.8
    fill: float = 30.0
    turn: float = 100.0
    step: float = 3e-7
    accumulate: float = 1e-12
    launch: float = 1e-5


def tpu_seconds(p: Problem, target: Target, tiles: Any, rates: TpuRates) -> Any:
    """Predicts the seconds of each tile.

    Args:
      p: the product.
      target: the device.
      tiles: [..., 3], rows, k and n of a tile; larger than the problem means all of it.
      rates: fitted to the kernel on the device.
    """
    tm, tk, tn = np.moveaxis(np.minimum(np.asarray(tiles, float), (2**40, p.k, p.n)), -1, 0)
    visits = p.visits(tm)
    peak = target.rate(p.dtype) * getattr(rates, p.direction)
    fill = rates.turn if p.direction == "dlhs" else rates.fill
    mac = 2 * (tm + fill) * _up(tk) * _up(tn) / peak
    model = _outer if p.direction == "drhs" else _rows
    bandwidth = target.bytes * rates.bandwidth / p.itemsize
    return model(p, tm, tk, tn, visits, mac, bandwidth, rates) + rates.launch


def _rows(
    p: Problem, tm: Any, tk: Any, tn: Any, visits: Any, mac: Any, bandwidth: float, rates: TpuRates
) -> Any:
    """Fwd and dlhs: columns outermost, then visits, then the contracted width."""
    deep, wide = (tn, tk) if p.direction == "dlhs" else (tk, tn)
    steps, columns = np.ceil(p.contracted / deep), np.ceil(p.width / wide)
    compute = mac + tm * wide * rates.accumulate
    rows, weights = tm * deep / bandwidth, deep * wide / bandwidth
    steady = rows + tm * wide / steps / bandwidth
    fresh = np.where(steps > 1, visits, np.minimum(visits, p.used))
    known = np.maximum(compute, steady)
    loading = np.maximum(compute, steady + weights)
    pass_ = (visits - fresh) * known + fresh * loading + visits * rates.step
    return columns * steps * pass_


def _outer(
    p: Problem, tm: Any, tk: Any, tn: Any, visits: Any, mac: Any, bandwidth: float, rates: TpuRates
) -> Any:
    """Drhs: blocks of the result outermost, then visits; one store per group."""
    blocks = np.ceil(p.k / tk) * np.ceil(p.n / tn)
    compute = mac + tk * tn * rates.accumulate
    rows, store = tm * (tk + tn) / bandwidth, tk * tn / bandwidth
    fresh = np.minimum(visits, p.used)
    known, storing = np.maximum(compute, rows), np.maximum(compute, rows + store)
    return blocks * ((visits - fresh) * known + fresh * storing + visits * rates.step)


def tpu_footprint(p: Problem, tiles: Any, buffers: int = 2) -> Any:
    """Bytes of VMEM: inputs in `buffers` copies, the result in two, and its f32 accumulator."""
    tm, tk, tn = np.moveaxis(np.asarray(tiles, float), -1, 0)
    if p.direction == "drhs":
        inputs, out = tm * (tk + tn), tk * tn
    elif p.direction == "dlhs":
        inputs, out = tn * (tm + tk), tm * tk
    else:
        inputs, out = tk * (tm + tn), tm * tn
    return p.itemsize * (buffers * inputs + 2 * out) + 4 * out


def tpu_tiles(p: Problem) -> np.ndarray:
    """The tiles considered: rows a power of two, widths powers of two and parts of the whole."""
    rows = [m for m in (128, 256, 512, 1024) if m <= max(p.rows, LANES)]
    found = [(m, k, n) for m in rows for k in _widths(p.k) for n in _widths(p.n)]
    return np.array(found, float)


def _widths(size: int) -> list[int]:
    whole = int(_up(size))
    powers = {LANES * 2**i for i in range(6) if LANES * 2**i <= whole}
    parts = {whole // 2**i for i in range(6) if whole // 2**i >= LANES}
    return sorted(w for w in powers | parts if w % LANES == 0)


def _up(size: Any) -> Any:
    """Rounded up to the lanes of a register."""
    return np.ceil(np.asarray(size) / LANES) * LANES
