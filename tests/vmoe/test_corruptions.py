"""Noise and blur: how much, in which units, the same for the same rows."""

import numpy as np
import pytest

from vmoe.corruptions import CORRUPTIONS, DEGREES, Corrupted
from vmoe.data.images import Images

GREY = Images(np.full((6, 32, 32, 1), 0.25, np.float32), np.arange(6, dtype=np.int32), 10)


def test_noise_is_a_share_of_the_value_range():
    for severity, degree in enumerate(DEGREES["noise"]["small"], 1):
        batch = Corrupted(GREY, "noise", severity, (-1.0, 1.0)).batch(slice(0, 6))
        np.testing.assert_allclose(np.std(batch["images"]), 2 * degree, rtol=0.05)
        np.testing.assert_allclose(np.mean(batch["images"]), 0.25, atol=0.01)
        assert batch["labels"].tolist() == list(range(6))
    white = Images(np.ones((1, 32, 32, 1), np.float32), np.zeros(1, np.int32), 10)
    assert Corrupted(white, "noise", 5, (-1.0, 1.0)).batch(slice(0, 1))["images"].max() <= 1


def test_blur_spreads_a_point_and_keeps_its_sum():
    point = np.zeros((1, 33, 33, 1), np.float32)
    point[0, 16, 16] = 1.0
    images = Images(point, np.zeros(1, np.int32), 10)
    blurred = Corrupted(images, "blur", 5, (0.0, 1.0)).batch(slice(0, 1))["images"][0, ..., 0]
    np.testing.assert_allclose(blurred.sum(), 1, rtol=1e-5)
    offsets = np.arange(33) - 16
    np.testing.assert_allclose((blurred.sum(1) * offsets**2).sum(), 1.0, rtol=0.02)  # variance 1


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_same_rows_are_the_same_in_batches_of_any_size(kind):
    worse = Corrupted(GREY, kind, 3, (-1.0, 1.0))
    whole = worse.batch(slice(0, 6))["images"]
    np.testing.assert_array_equal(worse.batch(slice(2, 4))["images"], whole[2:4])
    np.testing.assert_array_equal(worse.batch(slice(4, 6))["images"], whole[4:])
    assert len(worse) == 6


def test_large_images_get_the_degrees_of_large_ones():
    big = Images(np.zeros((1, 64, 64, 1), np.float32), np.zeros(1, np.int32), 10)
    batch = Corrupted(big, "noise", 1, (-1.0, 1.0)).batch(slice(0, 1))
    np.testing.assert_allclose(np.std(batch["images"]), 2 * 0.08, rtol=0.05)
