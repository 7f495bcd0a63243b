"""bench/papers/statistics.py: every figure here can be counted by hand."""

from itertools import combinations, product

import numpy as np
import pytest

from bench.papers.statistics import equivalence, holm, interval, sign_flip


def test_sign_flip_counts_patterns():
    assert sign_flip([1, 2, 3]) == 2 / 8  # only +++ and --- are as far out
    assert sign_flip([1, 2, 3], alternative="greater") == 1 / 8
    assert sign_flip([1, 2, -3]) == 1.0  # a mean of 0 is never further out than another
    # 2 of {-1-2+4, ...}: sums are +-7, +-5, +-3, +-1; the seen one is 5.
    assert sign_flip([-1, 2, 4]) == 4 / 8
    assert sign_flip([-1, 2, 4], alternative="greater") == 2 / 8
    assert sign_flip([0.0, 0.0]) == 1.0


def test_eight_equal_signs_are_two_patterns_of_256_and_five_of_32():
    assert sign_flip([0.1] * 8) == 2 / 256
    assert sign_flip([-0.3, -0.1, -0.2, -0.4, -0.1]) == 2 / 32


def test_sums_that_differ_by_rounding_are_equal():
    assert sign_flip([0.1, 0.2, 0.3, -0.6]) == 1.0


def test_the_interval_is_made_of_subset_means():
    values = [1.0, 2.0, 4.0, -3.0, 0.5, 7.0]
    means = sorted(np.mean(c) for n in range(1, 7) for c in combinations(values, n))
    wide = interval(values)  # 0.025 * 64 = 1.6: r = 1
    assert (wide.low, wide.high) == (-3.0, 7.0)
    assert wide.level == 1 - 2 / 64
    narrow = interval(values, level=0.75)  # r = 8
    assert (narrow.low, narrow.high) == pytest.approx((means[7], means[-8]))
    assert narrow.level == 0.75


def test_five_differences_end_at_their_range_and_say_so():
    five = interval([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (five.low, five.high, five.level) == (1.0, 5.0, 0.9375)


def test_the_interval_inverts_the_test():
    values = np.array([0.3, -0.1, 0.7, 0.2, 0.9, 0.4, -0.2, 0.55])
    found = interval(values)
    assert found.level == 1 - 12 / 256
    for outside in (found.low - 1e-6, found.high + 1e-6):
        assert sign_flip(values - outside) <= 12 / 256
    for inside in (found.low + 1e-6, found.high - 1e-6):
        assert sign_flip(values - inside) > 12 / 256


def test_equivalence_is_the_worse_side():
    close = [0.02, -0.03, 0.01, 0.0, -0.01]
    assert equivalence(close, 0.1) == 1 / 32
    far = [0.2, 0.25, 0.3, 0.2, 0.22]
    assert equivalence(far, 0.1) == 1.0
    lopsided = [0.05, 0.05, 0.05, 0.05, 0.15]
    values = 0.1 - np.array(lopsided)
    signs = np.array(list(product((-1, 1), repeat=5)))
    assert equivalence(lopsided, 0.1) == np.mean(signs @ values >= values.sum() - 1e-12)


def test_holm_by_hand():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("values", [[], [1.0] * 21, [1.0, float("nan")], [[1.0]]])
def test_what_cannot_be_tested_is_refused(values):
    with pytest.raises(ValueError, match="1 to 20 finite differences"):
        sign_flip(values)


def test_an_unknown_alternative_is_refused():
    with pytest.raises(ValueError, match='"less" is unknown; fix: two-sided or greater'):
        sign_flip([1.0], alternative="less")
