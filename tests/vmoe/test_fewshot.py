"""Few-shot ridge regression: recorded weights and accuracies, and the shots that are drawn."""

import numpy as np
import pytest

from tests.vmoe.vectors import load, relative_error
from vmoe.fewshot import PENALTIES, best_penalty, draw_shots, fit

RECORDED = load("i_fewshot")


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_the_recorded_solutions(case):
    """The records are of eigh in float32: eigenvalues are off by a few 2**-24 of the largest."""
    data = {name: RECORDED[f"{case}/{name}"] for name in ("x_train", "y_train", "x_test", "y_test")}
    ridge = fit(data["x_train"], data["y_train"], 6)
    largest, smallest = ridge.eigenvalues.max(), max(0.0, ridge.eigenvalues.min())
    for i, penalty in enumerate(PENALTIES):
        tolerance = 4 * 2**-24 * largest / (smallest + penalty) + 1e-5
        wanted = RECORDED[f"{case}/weights"][i]
        assert relative_error(ridge.weights(penalty), wanted) < min(tolerance, 0.014), penalty
    found = [ridge.accuracy(data["x_test"], data["y_test"], penalty) for penalty in PENALTIES]
    images = np.abs(np.array(found) - RECORDED[f"{case}/acc"]) * 120
    # Of case1 one image, at one penalty, lies between two classes to that precision.
    assert np.round(images).sum() == {"case0": 0, "case1": 1}[case]


def test_the_recorded_choice_of_penalties():
    best = best_penalty(RECORDED["best_l2/acc"])
    np.testing.assert_array_equal(best, RECORDED["best_l2/best"])


def test_both_systems_have_the_same_solution():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 8)), rng.integers(0, 3, 12)
    many, few = fit(x, y, 3), fit(x[:9], y[:9], 3)  # 9 images, 8 features and the bias
    less = fit(x[:6], y[:6], 3)
    for ridge, n in ((many, 12), (few, 9), (less, 6)):
        z = np.concatenate([(x[:n] - ridge.mean) / ridge.std, np.full((n, 1), 100.0)], 1)
        targets = 2 * np.eye(3)[y[:n]] - 1
        direct = np.linalg.solve(z.T @ z + 0.5 * np.eye(9), z.T @ targets)
        np.testing.assert_allclose(ridge.weights(0.5), direct, atol=1e-8)


def test_shots_of_each_class():
    labels = np.array([0, 1, 0, 0, 2, 1, 0, 1])
    rows = draw_shots(labels, 2, seed=0)
    assert np.bincount(labels[rows]).tolist() == [2, 2, 1]
    assert sorted(set(rows)) == list(rows)
    np.testing.assert_array_equal(rows, draw_shots(labels, 2, seed=0))
    assert any((rows != draw_shots(labels, 2, seed=s)).any() for s in range(1, 5))
