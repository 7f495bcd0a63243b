"""How far probabilities can be trusted: NLL, Brier score, calibration error, temperature."""

from __future__ import annotations

import numpy as np

BINS = 15


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of f32[N, classes], in f64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    return weights / weights.sum(axis=1, keepdims=True)


def nll(p: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p of the label; p f64[N, classes], labels i32[N]."""
    return float(-np.mean(np.log(np.maximum(p[np.arange(len(p)), labels], 1e-300))))


def brier(p: np.ndarray, labels: np.ndarray) -> float:
    """Mean over images of the squared distance between p and the one-hot label; 0 to 2."""
    return float(np.mean(np.sum(p**2, axis=1) - 2 * p[np.arange(len(p)), labels] + 1))


def reliability(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> np.ndarray:
    """f64[bins, 3]: share of the images, mean confidence and accuracy of each bin; 0 where empty.

    Bins are equally wide in confidence, the largest probability; the upper edge belongs to a bin.
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(number, minlength=bins)
    sums = [np.bincount(number, weights=w, minlength=bins) for w in (confidence, right)]
    return np.stack([counts / len(p), *(total / np.maximum(counts, 1) for total in sums)], axis=1)


def calibration_error(p: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins, weighted by their shares.

    Source: arXiv:1706.04599, equation 3.
    """
    share, confidence, accuracy = reliability(p, labels, bins).T
    return float(np.sum(share * np.abs(accuracy - confidence)))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.05, 20] with the least NLL of softmax(logits / T).

    The NLL is convex in 1 / T, so it is bracketed until 1 / T is known to 1e-6 of itself.

    Source: arXiv:1706.04599, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: nll(probabilities(logits / np.exp(log_t)), labels),
        bounds=(np.log(0.05), np.log(20.0)), method="bounded", options={"xatol": 1e-6},
    )  # fmt: skip
    return float(np.exp(found.x))


def scaled_by_the_other_half(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities after temperature scaling, f64[N, classes].

    The temperature of the even images is fitted to the odd ones and the other way round, so no
    image has a say in its own.
    """
    p = np.empty(logits.shape, np.float64)
    for half in (0, 1):
        t = temperature(logits[1 - half :: 2], labels[1 - half :: 2])
        p[half::2] = probabilities(logits[half::2] / t)
    return p
