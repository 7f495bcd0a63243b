"""Mixup: shares that sum to one, largest first, the same for images and labels."""

import jax
import jax.numpy as jnp
import numpy as np

from vmoe.config import MixupConfig
from vmoe.mixup import mixed, mixup

BATCH = {"images": jnp.eye(5)[:, :, None], "labels": jnp.eye(5)}


def shares_of(batch) -> np.ndarray:
    """The identity as the batch shows the shares: row 0 is a_0, a_1, ... by column."""
    return np.asarray(batch["labels"])[0]


def test_each_image_with_those_after_it():
    mix = mixed(jnp.arange(4.0), jnp.array([0.7, 0.2, 0.1]))
    rows = [(0, 1, 2), (1, 2, 3), (2, 3, 0), (3, 0, 1)]
    np.testing.assert_allclose(mix, [0.7 * a + 0.2 * b + 0.1 * c for a, b, c in rows], rtol=1e-6)


def test_images_and_labels_get_the_same_shares_largest_first():
    config = MixupConfig(concentration=1.0, images=3)
    seen = []
    for seed in range(200):
        batch = mixup(config, BATCH, jax.random.key(seed))
        np.testing.assert_array_equal(batch["images"][..., 0], batch["labels"])
        shares = shares_of(batch)
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
        assert shares[0] >= shares[1] >= shares[2] > shares[3] == 0
        seen.append(shares)
    # Uniform on the simplex, sorted: the means are (11, 5, 2) / 18.
    np.testing.assert_allclose(np.mean(seen, 0)[:3], np.array([11, 5, 2]) / 18, atol=0.04)


def test_without_concentration_nothing_is_drawn():
    assert mixup(MixupConfig(), BATCH, jax.random.key(0)) is BATCH
