"""Times functions against a baseline, interleaved, so that both see the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax

Thunk = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One function's result: its own median, and the median of its ratios to the baseline."""

    name: str
    median_ms: float
    ratio: float
    ratio_low: float  # quartiles of the pairwise ratios: how far to trust the median
    ratio_high: float


def check_rounds(rounds: int) -> None:
    """Raise ValueError if there are too few rounds for quartiles."""
    if rounds < 3:
        raise ValueError(
            f"rounds={rounds}: quartiles need at least 3; fix: pass --rounds=3 or more"
        )


def compare(
    baseline: Thunk, candidates: Mapping[str, Thunk], rounds: int, name: str = "dense"
) -> list[Timing]:
    """Time each candidate right after the baseline, `rounds` times.

    Machine noise lasts longer than one pair, so it divides out of each ratio; a ratio of two
    separate medians keeps it. Returns the baseline first, by the name given (its ratio is 1), then
    the candidates in their order. Times are milliseconds of wall clock.
    """
    check_rounds(rounds)
    for thunk in (baseline, *candidates.values()):
        for _ in range(2):  # the first call compiles, the second touches all memory once
            _milliseconds(thunk)
    own: dict[str, list[float]] = {name: [] for name in candidates}
    base: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for candidate, thunk in candidates.items():
            base[candidate].append(_milliseconds(baseline))
            own[candidate].append(_milliseconds(thunk))
    middle = statistics.median(t for times in base.values() for t in times)
    rows = [Timing(name, middle, 1.0, 1.0, 1.0)]
    return rows + [_summary(c, own[c], base[c]) for c in candidates]


def _summary(name: str, own: list[float], base: list[float]) -> Timing:
    ratios = [mine / its for mine, its in zip(own, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Timing(name, statistics.median(own), middle, low, high)


def _milliseconds(thunk: Thunk) -> float:
    start = time.perf_counter()
    jax.block_until_ready(thunk())
    return (time.perf_counter() - start) * 1e3
