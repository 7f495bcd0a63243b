"""Few-shot linear evaluation: ridge regression on the model's features, a few images of each class.

Source: arXiv:2010.11929, section 4.1, as the released V-MoE code computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHOTS = (1, 5, 10, 25)
PENALTIES = tuple(2.0**exponent for exponent in range(-10, 20))
BIAS = 100.0
"""A feature of its own, large so that the penalty hardly weighs on it."""


class Ridge(NamedTuple):
    """The solutions for every penalty, in the eigenbasis of the features' products.

    Attributes:
      mean, std: f64[1, D], which whiten features.
      left: f64[D + 1, R]; right: f64[R, classes]; eigenvalues: f64[R]. The weights for a
        penalty are left @ (right / (eigenvalues + penalty)).
    """

    mean: np.ndarray
    std: np.ndarray
    left: np.ndarray
    right: np.ndarray
    eigenvalues: np.ndarray

    def weights(self, penalty: float) -> np.ndarray:
        """f64[D + 1, classes], the bias last."""
        return self.left @ (self.right / (self.eigenvalues + penalty)[:, None])

    def accuracy(self, features: np.ndarray, labels: np.ndarray, penalty: float) -> float:
        """Share of features f32[N, D] whose largest score is that of their label."""
        scores = _with_bias((features - self.mean) / self.std) @ self.weights(penalty)
        return float(np.mean(np.argmax(scores, axis=1) == labels))


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Ridge:
    """Solves for the targets 1 (the class) and -1 (others), for all penalties at once.

    Args:
      features: f32[N, D].
      labels: i32[N].
      num_classes: scores per image.
    """
    x = np.asarray(features, np.float64)
    mean, std = x.mean(0, keepdims=True), x.std(0, keepdims=True) + 1e-5
    x = _with_bias((x - mean) / std)
    targets = 2.0 * np.eye(num_classes)[labels] - 1.0
    if len(x) >= x.shape[1]:
        eigenvalues, basis = np.linalg.eigh(x.T @ x)
        return Ridge(mean, std, basis, basis.T @ (x.T @ targets), eigenvalues)
    # Fewer images than features: the smaller system of the images' products has the same solution.
    eigenvalues, basis = np.linalg.eigh(x @ x.T)
    return Ridge(mean, std, x.T @ basis, basis.T @ targets, eigenvalues)


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` images of each class, or all of a class that has fewer; sorted."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def best_penalty(accuracy: np.ndarray, penalties: Sequence[float] = PENALTIES) -> np.ndarray:
    """The penalty with the best mean rank over data sets, for each number of shots.

    Args:
      accuracy: f32[sets, shots, penalties].
      penalties: the last dim's values.

    Returns:
      f64[shots]; of penalties with the same mean rank, the smallest.
    """
    ranks = np.argsort(np.argsort(accuracy, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.asarray(penalties)[np.argmax(ranks.mean(0), axis=-1)]


def _with_bias(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.full((len(x), 1), BIAS)], axis=1)
