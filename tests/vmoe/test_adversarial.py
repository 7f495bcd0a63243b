"""Changed images: how far, which way, and that a step trains on them."""

import jax.numpy as jnp
import numpy as np

from vmoe.adversarial import perturbed
from vmoe.config import AdversarialConfig

IMAGES = jnp.array([[0.3, -0.2], [0.0, 0.9]])


def test_a_linear_loss_moves_every_pixel_by_epsilon():
    slope = jnp.array([2.0, -3.0])
    moved = perturbed(AdversarialConfig(4, 0.1), lambda x: jnp.sum(x * slope), IMAGES)
    np.testing.assert_allclose(moved, IMAGES + jnp.array([0.1, -0.1]), rtol=1e-6)


def test_each_step_takes_its_own_gradient():
    """Against -|x| of a pixel at 0.05: to 0 in one step, then across it and back."""
    config = AdversarialConfig(3, 0.3)
    moved = perturbed(config, lambda x: -jnp.sum(jnp.abs(x)), jnp.array([[0.05]]))
    np.testing.assert_allclose(moved, [[-0.05]], atol=1e-6)


def test_no_steps_change_nothing():
    assert perturbed(AdversarialConfig(), jnp.sum, IMAGES) is IMAGES
