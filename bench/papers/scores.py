"""What predictions are worth, and the paired difference of two arms in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], float]
"""From log-probabilities f32[N, classes] and labels i32[N] to a number."""


def accuracy(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Share classified right, in percent."""
    return 100.0 * float(np.mean(np.argmax(log_p, -1) == labels))


SCORES: dict[str, Score] = {"accuracy": accuracy}
"""By name; accuracy is in percent."""
POINTS = ("accuracy",)
"""The scores whose differences are percentage points."""


@dataclass(frozen=True)
class Comparison:
    """Paired differences between two arms.

    Attributes:
      name: what is compared, such as "vmoe_k1 - dense".
      score: in what.
      differences: one for each seed.
      primary: its name in the protocol's FAMILY, or None.
    """

    name: str
    score: str
    differences: tuple[float, ...]
    primary: str | None = None

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.differences))

    @property
    def unit(self) -> str:
        """What the differences are counted in."""
        return "points" if self.score in POINTS else ""


def compared(
    name: str,
    score: str,
    first: Sequence[float],
    second: Sequence[float],
    primary: str | None = None,
) -> Comparison:
    """First minus second, seed by seed."""
    pairs = zip(first, second, strict=True)
    return Comparison(name, score, tuple(a - b for a, b in pairs), primary)
