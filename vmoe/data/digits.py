"""scikit-learn's handwritten digits: 1,797 real grey images of 8x8 pixels, shipped in its wheel."""

from __future__ import annotations

import numpy as np

from vmoe.data.images import Images, scaled

TEST_IMAGES = 360
SPLIT_SEED = 0


def load_digits() -> tuple[Images, Images]:
    """The 1,437 training and 360 test images, in a fixed order drawn with SPLIT_SEED.

    The test images are the first 360 of the permutation by numpy's PCG64 generator. With 360
    images the standard error of an accuracy of 97 % is about 0.9 points.
    """
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = scaled(pixels.reshape(-1, 8, 8), white=16.0)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    parts = order[TEST_IMAGES:], order[:TEST_IMAGES]
    train, test = (Images(images[part], labels[part].astype(np.int32), 10) for part in parts)
    return train, test
