"""Out-of-distribution scores against all pairs, and worked-out cases."""

import numpy as np

from vmoe.ood import auroc, fpr95


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(2, 9, 40) / 8, rng.integers(0, 7, 30) / 8
    pairs = inside[:, None] - outside
    np.testing.assert_allclose(auroc(inside, outside), np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert auroc(np.array([1.0]), np.array([0.0])) == 1
    assert auroc(np.array([0.5, 0.5]), np.array([0.5])) == 0.5


def test_fpr95():
    inside = np.arange(1, 21) / 20
    assert fpr95(inside, np.array([0.05, 0.06, 0.1, 0.5])) == 0.5  # the threshold is 0.1
    assert fpr95(inside, np.array([0.0])) == 0
    assert fpr95(np.ones(10), np.ones(3)) == 1
