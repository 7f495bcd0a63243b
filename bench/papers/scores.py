"""What predictions are worth, and the paired difference of two arms in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vmoe import calibration

Score = Callable[[np.ndarray, np.ndarray], float]
"""From log-probabilities f32[N, classes] and labels i32[N] to a number."""


def accuracy(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Share classified right, in percent."""
    return 100.0 * float(np.mean(np.argmax(log_p, -1) == labels))


def nll(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats."""
    return calibration.nll(calibration.probabilities(log_p), labels)


def brier(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Brier score summed over classes, 0 to 2."""
    return calibration.brier(calibration.probabilities(log_p), labels)


def ece(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error over 15 bins, in percent."""
    return 100.0 * calibration.calibration_error(calibration.probabilities(log_p), labels)


def scaled_nll(log_p: np.ndarray, labels: np.ndarray) -> float:
    """NLL after temperature scaling; each half's temperature is fitted to the other half."""
    return calibration.nll(calibration.scaled_by_the_other_half(log_p, labels), labels)


def scaled_ece(log_p: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error after temperature scaling, in percent."""
    p = calibration.scaled_by_the_other_half(log_p, labels)
    return 100.0 * calibration.calibration_error(p, labels)


SCORES: dict[str, Score] = {
    "accuracy": accuracy, "NLL": nll, "Brier": brier, "ECE": ece,
    "NLL scaled": scaled_nll, "ECE scaled": scaled_ece,
}  # fmt: skip
"""By name; only of accuracy is more better. Accuracy and ECE are in percent."""
POINTS = ("accuracy", "ECE", "ECE scaled")
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
