"""Exact tests of paired differences: sign flips, their interval, equivalence, Holm's correction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOST = 20
"""Differences at the most: all 2^n sign patterns are looked at."""


@dataclass(frozen=True)
class Interval:
    """An interval of the mean difference, and the level that it really has.

    Few differences cannot reach every level: five end at 93.75 %.
    """

    low: float
    high: float
    level: float


def sign_flip(differences: Sequence[float], *, alternative: str = "two-sided") -> float:
    """The chance of a mean as far from 0 as this one if every difference could as well be negated.

    Args:
      differences: one per pair; at most MOST.
      alternative: "two-sided", or "greater": a mean above 0.

    Source: R. A. Fisher, The Design of Experiments, section 21: all 2^n sign patterns are counted.
    """
    values = _checked(differences)
    sums = _signs(len(values)) @ values
    seen = values.sum()
    if alternative == "two-sided":
        sums, seen = np.abs(sums), abs(seen)
    elif alternative != "greater":
        raise ValueError(f'alternative "{alternative}" is unknown; fix: two-sided or greater')
    slack = 1e-12 * np.abs(values).sum()  # sums of the same numbers in another order are equal
    return float(np.mean(sums >= seen - slack))


def interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """The means that the two-sided sign-flip test does not reject.

    Its ends are the r-th least and r-th largest mean of the 2^n - 1 non-empty subsets, and its
    level is 1 - 2r / 2^n, with the largest r for which that is at least the level asked for; with
    r = 1, from least to largest difference, where even that falls short.

    Source: J. A. Hartigan, Using subsample values as typical values, JASA 64 (1969).
    """
    values = _checked(differences)
    chosen = (_signs(len(values))[1:] + 1.0) / 2.0  # the first pattern chooses nothing
    means = np.sort(chosen @ values / chosen.sum(axis=1))
    patterns = 2 ** len(values)
    r = max(1, math.floor((1.0 - level) / 2.0 * patterns + 1e-9))
    return Interval(float(means[r - 1]), float(means[-r]), 1.0 - 2.0 * r / patterns)


def equivalence(differences: Sequence[float], margin: float) -> float:
    """The p of |mean| >= margin: the larger of two one-sided sign-flip tests."""
    values = _checked(differences)
    sides = (margin + values, margin - values)
    return max(sign_flip(side, alternative="greater") for side in sides)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values corrected for being many; below alpha means rejected at alpha for the family.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected, largest = {}, 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _checked(differences: Sequence[float]) -> np.ndarray:
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or not 1 <= len(values) <= MOST or not np.isfinite(values).all():
        raise ValueError(f"1 to {MOST} finite differences are needed; fix: not {differences}")
    return values


def _signs(n: int) -> np.ndarray:
    """All 2^n patterns of -1 and 1, f64[2^n, n]; the first is all -1."""
    return ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) * 2.0 - 1.0
