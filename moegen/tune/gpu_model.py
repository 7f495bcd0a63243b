"""Seconds of a grouped product on a GPU: blocks of threads in waves, limited by HBM.

A block computes one tile of the result. Waves of blocks run on all multiprocessors; a tile
of columns reads its rows again, and a tile of rows its weights, out of the L2 cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moegen.tune.problem import Problem
from moegen.tune.target import Target


@dataclass(frozen=True, slots=True)
class GpuRates:
    """What a kernel reaches on a device; the parameters of the model.

    Attributes:
      fwd, dlhs, drhs: share of the peak rate of the tensor cores, per direction.
      bandwidth: share of the HBM's.
      cache: bytes per second out of the L2 cache, in units of the HBM's.
      tile: seconds of a block apart from its products.
      idle: seconds of a block that finds no rows: kernels that launch a full grid for every
        group have (groups - 1) times as many of them as others have blocks.
      copy_fwd, copy_dlhs: share of the weights that is transposed beforehand.
      launch: seconds of the whole call.
    """

    fwd: float = 0.5
    dlhs: float = 0.5
    drhs: float = 0.5
    bandwidth: float = 0.8
    cache: float = 3.0
    tile: float = 1e-6
    idle: float = 0.0
    copy_fwd: float = 0.1
    copy_dlhs: float = 0.5
    launch: float = 2e-5


def gpu_seconds(p: Problem, target: Target, tiles: Any, rates: GpuRates) -> Any:
    """Predicts the seconds of each tile.

    Args:
      p: the product.
      target: the device.
      tiles: [..., 4], rows and columns of a block, the width of a step, stages.
      rates: fitted to the kernel on the device.
    """
    bm, bn, bk, _ = np.moveaxis(np.asarray(tiles, float), -1, 0)
    peak = target.rate(p.dtype) * getattr(rates, p.direction)
    if p.direction == "drhs":
        across = np.ceil(p.k / bm) * np.ceil(p.n / bn)
        blocks, idle = across * p.groups, 0.0 * across
        depth = p.rows / p.groups + bk / 2
        again = p.rows * (p.k * np.ceil(p.n / bn) + p.n * np.ceil(p.k / bm))
    else:
        columns = np.ceil(p.width / bn)
        blocks = p.visits(bm) * columns
        idle = np.ceil(p.rows / bm) * columns * p.groups - blocks
        depth = np.ceil(p.contracted / bk) * bk
        again = p.contracted * (p.rows * columns + p.visits(bm) * p.width)
    waves = np.ceil(blocks / target.cores)
    per_block = 2 * bm * bn * depth * target.cores / peak + rates.tile
    cached = p.itemsize * again / (rates.cache * target.bytes)
    memory = p.bytes / (rates.bandwidth * target.bytes)
    seconds = np.maximum(waves * per_block, np.maximum(cached, memory))
    copied = getattr(rates, f"copy_{p.direction}", 0.0) * 2 * p.itemsize * p.groups * p.k * p.n
    extra = np.maximum(idle, 0) * rates.idle / target.cores + copied / target.bytes
    return seconds + extra + rates.launch


def gpu_footprint(p: Problem, tiles: Any) -> Any:
    """Bytes of shared memory: a step's rows and weights for every stage."""
    bm, bn, bk, stages = np.moveaxis(np.asarray(tiles, float), -1, 0)
    return p.itemsize * stages * bk * (bm + bn)
