"""Fits a kernel's rates to observed times: least squares of logarithms, held near a prior.

Two things are asked of the rates: that the observed times come out, and that no other tile
looks faster than the one that was best when all were tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace

import numpy as np

from moegen.tune.gpu_model import GpuRates, gpu_footprint
from moegen.tune.kernel_model import Kernel, candidates, predict
from moegen.tune.observations import Observation
from moegen.tune.problem import DIRECTIONS, Problem
from moegen.tune.target import TARGETS, Target
from moegen.tune.tpu_model import TpuRates, tpu_footprint

WHOLE = float(2**40)
OWN_TILES = [
    (m, k, n)
    for m in (128.0, 256.0, 512.0)
    for k in (512.0, 1024.0, 2048.0, WHOLE)
    for n in (256.0, 512.0, 1024.0, 2048.0, WHOLE)
]
"""Tiles a kernel that does not tell its own is tried with; the one that fits best is kept."""
TILE_WEIGHT = 0.3
PRIOR_WEIGHT = 0.01
OUTLIER = 0.3
"""Errors of the logarithm beyond this count linearly: tables mix versions of the compiler."""


def fit_kernel(target: Target, name: str, found: Sequence[Observation]) -> Kernel:
    """Fits one kernel of one device to its observations."""
    tiled = [o for o in found if o.tile]
    start = _start(target, name, found, tiled)
    if not tiled and start.dense != start.directions:
        trials = [_search(target, replace(start, tile=t), found, 6) for t in OWN_TILES]
        start = min(trials, key=lambda t: t[1])[0]
        start = replace(start, rates=type(start.rates)())
    return _rounded(_search(target, start, tiled or found, 40)[0])


def _start(
    target: Target, name: str, found: Sequence[Observation], tiled: Sequence[Observation]
) -> Kernel:
    directions = tuple(d for d in DIRECTIONS if any(o.problem.direction == d for o in found))
    dense = tuple(d for d in directions if _is_dense(target, d, found))
    if target.platform == "tpu":
        sizes = [float(tpu_footprint(o.problem, o.tile)) for o in tiled]
        limit = max(sizes, default=float("inf"))
        return Kernel(name, TpuRates(), on_chip=limit, directions=directions, dense=dense)
    blocks = tuple(sorted({o.tile for o in tiled}))
    limit = max((float(gpu_footprint(o.problem, o.tile)) for o in tiled), default=float("inf"))
    rates = GpuRates(idle=1e-7) if name == "triton" else GpuRates()
    return Kernel(name, rates, (), blocks, limit, directions, dense)


def _is_dense(target: Target, direction: str, found: Iterable[Observation]) -> bool:
    """Whether times are those of every row times every group's weights."""
    some = [o for o in found if o.problem.direction == direction and o.problem.rows > 8]
    ratios = [o.seconds * target.flops / o.problem.flops / o.problem.groups for o in some]
    return bool(ratios) and float(np.median(ratios)) > 0.5


def _search(
    target: Target, kernel: Kernel, found: Sequence[Observation], rounds: int
) -> tuple[Kernel, float]:
    """Coordinate search over the logarithms of the rates; deterministic."""
    names = [f.name for f in fields(kernel.rates) if getattr(kernel.rates, f.name) > 0]
    prior = np.log([getattr(kernel.rates, n) for n in names])
    width = np.array([0.5 if n in DIRECTIONS or n == "bandwidth" else 1.5 for n in names])

    def at(x: np.ndarray) -> Kernel:
        found = dict(zip(names, map(float, np.exp(x)), strict=True))
        found["bandwidth"] = min(found["bandwidth"], 1.0)
        return _with(kernel, found)

    searched: dict[Problem, np.ndarray] = {}
    if not kernel.tile:
        tiled = {o.problem for o in found if o.problem.direction not in kernel.dense}
        searched = {p: candidates(p, kernel) for p in tiled}

    def loss(x: np.ndarray) -> float:
        away = float((((x - prior) / width) ** 2).mean())
        return _misfit(target, at(x), found, searched) + PRIOR_WEIGHT * away

    x, least = _descend(loss, prior, rounds)
    return at(x), least


def _misfit(
    target: Target,
    kernel: Kernel,
    found: Sequence[Observation],
    searched: dict[Problem, np.ndarray],
) -> float:
    errors, slack = [], 0.0
    for o in found:
        seconds = float(predict(o.problem, target, kernel, kernel.tile or o.tile))
        errors.append(np.log(seconds / o.seconds))
        if o.problem in searched:
            best = predict(o.problem, target, kernel, searched[o.problem]).min()
            slack += max(0.0, float(np.log(seconds / best)))
    size = np.abs(errors)
    bent = np.where(size < OUTLIER, size**2, OUTLIER * (2 * size - OUTLIER))
    return float(bent.mean()) + TILE_WEIGHT * slack / len(found)


def _descend(
    loss: Callable[[np.ndarray], float], x: np.ndarray, rounds: int
) -> tuple[np.ndarray, float]:
    least, step = loss(x), np.full(len(x), 0.5)
    for _ in range(rounds):
        for i in range(len(x)):
            for move in (step[i], -step[i]):
                moved = x.copy()
                moved[i] += move
                if (found := loss(moved)) < least:
                    least, x = found, moved
                    step[i] *= 1.5
                    break
            else:
                step[i] *= 0.5
        if step.max() < 0.01:
            break
    return x, least


def _rounded(kernel: Kernel) -> Kernel:
    values = asdict(kernel.rates)
    return _with(kernel, {name: float(f"{value:.3g}") for name, value in values.items()})


def _with(kernel: Kernel, rates: dict[str, float]) -> Kernel:
    return replace(kernel, rates=type(kernel.rates)(**asdict(kernel.rates) | rates))


def fit_all(found: Sequence[Observation]) -> dict[str, dict[str, Kernel]]:
    """Fits every kernel of every device that has observations."""
    pairs = sorted({(o.target, o.kernel) for o in found})
    fitted: dict[str, dict[str, Kernel]] = {}
    for device, kernel in pairs:
        own = [o for o in found if (o.target, o.kernel) == (device, kernel)]
        fitted.setdefault(device, {})[kernel] = fit_kernel(TARGETS[device], kernel, own)
    return fitted
