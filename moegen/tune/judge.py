"""Judges the kernel model on observed times: regret of the kernel, agreement of the tile.

A table that holds each kernel's best tile only says what a wrong kernel costs, not what a
wrong tile does. Of tiles it says whether the same one was found, and how much slower the
model believes the observed best to be: were the model right, nothing could be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from moegen.tune.kernel_model import Kernel, estimate, predict
from moegen.tune.observations import Observation, held_out
from moegen.tune.problem import DIRECTIONS
from moegen.tune.target import TARGETS

Fitted = Mapping[str, Mapping[str, Kernel]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One device, direction and side of the split.

    Attributes:
      regrets: for each problem that two kernels or more ran: time of the kernel that is
        predicted to be fastest over the least, minus 1.
      single: the same for the one kernel that, always taken, does best on average.
      errors: |log(predicted / observed)| of every observation, at the observed tile.
      same_tile: share of searched tiles equal to the observed best.
      slack: for each of these, predicted time of the observed tile over the least, minus 1.
    """

    target: str
    direction: str
    held_out: bool
    regrets: tuple[float, ...]
    single: tuple[float, ...]
    errors: tuple[float, ...]
    same_tile: float
    slack: tuple[float, ...]


def judge(found: Sequence[Observation], fitted: Fitted) -> list[Verdict]:
    """Judges fitted kernels, per device, direction and side of the split."""
    verdicts = []
    for target in sorted({o.target for o in found}):
        for direction in DIRECTIONS:
            for side in (False, True):
                own = [
                    o
                    for o in found
                    if (o.target, o.problem.direction) == (target, direction)
                    and held_out(o.problem) == side
                ]
                verdicts.append(_verdict(target, direction, side, own, fitted[target]))
    return verdicts


def _verdict(
    target: str,
    direction: str,
    side: bool,
    found: Sequence[Observation],
    kernels: Mapping[str, Kernel],
) -> Verdict:
    tiled = [o for o in found if o.tile and direction not in kernels[o.kernel].dense]
    best = {o: estimate(o.problem, TARGETS[target], kernels[o.kernel]) for o in tiled}
    same = [best[o].tile[:3] == tuple(map(int, o.tile[:3])) for o in tiled]
    slack = [_at(o, kernels) / best[o].seconds - 1 for o in tiled]
    errors = [abs(float(np.log(_at(o, kernels) / o.seconds))) for o in _placed(found, kernels)]
    agreement = float(np.mean(same)) if same else float("nan")
    races = _races(found)
    taken = [min(rivals, key=lambda o: _predicted(o, kernels)) for rivals in races]
    return Verdict(
        target,
        direction,
        side,
        tuple(_regret(o, rivals) for o, rivals in zip(taken, races, strict=True)),
        _single(races),
        tuple(errors),
        agreement,
        tuple(slack),
    )


def _races(found: Iterable[Observation]) -> list[list[Observation]]:
    cases: dict[object, list[Observation]] = {}
    for o in found:
        cases.setdefault(o.case, []).append(o)
    return [rivals for rivals in cases.values() if len(rivals) > 1]


def _regret(taken: Observation, rivals: Iterable[Observation]) -> float:
    return taken.seconds / min(o.seconds for o in rivals) - 1


def _single(races: Sequence[Sequence[Observation]]) -> tuple[float, ...]:
    """Regrets of always taking one kernel, where it ran; of the kernel with the least mean."""
    regrets: dict[str, list[float]] = {}
    for rivals in races:
        for o in rivals:
            regrets.setdefault(o.kernel, []).append(_regret(o, rivals))
    widely = [r for r in regrets.values() if 2 * len(r) > len(races)]
    if not widely:
        return ()
    best: list[float] = min(widely, key=fmean)
    return tuple(best)


def _placed(found: Iterable[Observation], kernels: Mapping[str, Kernel]) -> Iterable[Observation]:
    """Observations at a tile the model can be asked about."""
    return (
        o
        for o in found
        if o.tile or kernels[o.kernel].tile or o.problem.direction in kernels[o.kernel].dense
    )


def _predicted(o: Observation, kernels: Mapping[str, Kernel]) -> float:
    return estimate(o.problem, TARGETS[o.target], kernels[o.kernel]).seconds


def _at(o: Observation, kernels: Mapping[str, Kernel]) -> float:
    kernel = kernels[o.kernel]
    return float(predict(o.problem, TARGETS[o.target], kernel, kernel.tile or o.tile))


def report(verdicts: Iterable[Verdict]) -> str:
    """A table of verdicts, all numbers but counts in per cent."""
    head = f"{'device':<9}{'dir':<6}{'part':<9}{'cases':>6}{'regret %':>10}{'max %':>8}"
    head += f"{'single %':>10}{'max %':>8}"
    lines = [head + f"{'error %':>9}{'tiles':>7}{'same %':>8}{'slack %':>9}"]
    for v in verdicts:
        part = "held-out" if v.held_out else "fit"
        lines.append(
            f"{v.target:<9}{v.direction:<6}{part:<9}{len(v.regrets):>6}"
            f"{_percent(v.regrets, np.median):>10}{_percent(v.regrets, np.max):>8}"
            f"{_percent(v.single, np.median):>10}{_percent(v.single, np.max):>8}"
            f"{_percent(v.errors, np.median):>9}{len(v.slack):>7}"
            f"{'-' if not v.slack else f'{100 * v.same_tile:.0f}':>8}"
            f"{_percent(v.slack, np.median):>9}"
        )
    return "\n".join(lines)


def _percent(values: Sequence[float], what: object) -> str:
    return f"{100 * float(what(values)):.1f}" if values else "-"  # type: ignore[operator]
