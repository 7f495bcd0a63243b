"""Calibration against plain loops and cases that can be worked out by hand."""

import numpy as np

from vmoe.calibration import (
    brier,
    calibration_error,
    nll,
    probabilities,
    reliability,
    scaled_by_the_other_half,
    temperature,
)  # fmt: skip

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(400, 4)).astype(np.float32) * 2
P = probabilities(LOGITS)
LABELS = np.array([RNG.choice(4, p=p) for p in P])


def test_scores_by_hand():
    p, labels = np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 0])
    np.testing.assert_allclose(nll(p, labels), -np.log([0.7, 0.4]).mean())
    np.testing.assert_allclose(brier(p, labels), (0.3**2 + 0.3**2 + 0.6**2 + 0.6**2) / 2)
    assert nll(np.array([[1.0, 0.0]]), np.array([1])) > 600  # large, not infinite
    np.testing.assert_allclose(probabilities(np.array([[1e4, 0.0]])), [[1, 0]])


def test_the_calibration_error_is_that_of_a_loop():
    error = 0.0
    for low in range(15):
        inside = [
            (p.max(), p.argmax() == y)
            for p, y in zip(P, LABELS, strict=True)
            if low / 15 < p.max() <= (low + 1) / 15
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            error += len(inside) / len(P) * abs(right - confidence)
    np.testing.assert_allclose(calibration_error(P, LABELS), error, rtol=1e-12)
    share, _, accuracy = reliability(P, LABELS).T
    np.testing.assert_allclose(share.sum(), 1)
    np.testing.assert_allclose((share * accuracy).sum(), np.mean(P.argmax(1) == LABELS))


def test_confidence_that_is_right_and_that_is_not():
    sure = np.tile([0.75, 0.25], (8, 1))
    assert calibration_error(sure, np.array([0, 0, 0, 1] * 2)) == 0
    np.testing.assert_allclose(calibration_error(sure, np.zeros(8, int)), 0.25)
    np.testing.assert_allclose(calibration_error(np.eye(2)[[0, 1]], np.array([0, 1])), 0)


def test_temperature_undoes_a_scale():
    """Labels drawn from softmax(logits): three times those logits need T near 3."""
    one = temperature(LOGITS, LABELS)
    np.testing.assert_allclose(temperature(3 * LOGITS, LABELS), 3 * one, rtol=1e-3)
    assert 0.8 < one < 1.25
    best = nll(probabilities(LOGITS / one), LABELS)
    assert all(best <= nll(probabilities(LOGITS / (one * s)), LABELS) for s in (0.98, 1.02))


def test_scaling_by_the_other_half():
    scaled = scaled_by_the_other_half(5 * LOGITS, LABELS)
    assert calibration_error(scaled, LABELS) < calibration_error(probabilities(5 * LOGITS), LABELS)
    np.testing.assert_array_equal(scaled.argmax(1), LOGITS.argmax(1))
    t = temperature(LOGITS[1::2], LABELS[1::2])
    np.testing.assert_allclose(
        scaled_by_the_other_half(LOGITS, LABELS)[::2], probabilities(LOGITS[::2] / t)
    )
