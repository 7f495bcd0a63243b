"""Parts of a batch: the same gradients as at once, each part with a key of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from vmoe.gradients import gradients

PARAMS = {"w": jnp.array([0.5, -1.0])}
BATCH = {"x": jnp.arange(16.0).reshape(8, 2), "y": jnp.arange(8.0)}


def loss(params, batch, key):
    error = batch["x"] @ params["w"] - batch["y"]
    drawn = jax.random.uniform(key)
    return jnp.mean(error**2), ({"error": jnp.mean(error), "drawn": drawn}, {"rows": error})


def test_parts_give_the_gradients_of_the_whole():
    key = jax.random.key(0)
    whole, scalars, reports = gradients(loss, PARAMS, BATCH, key)
    parts, mean, joined = gradients(loss, PARAMS, BATCH, key, parts=4)
    np.testing.assert_allclose(parts["w"], whole["w"], rtol=1e-6)
    np.testing.assert_allclose(mean["error"], scalars["error"], rtol=1e-6)
    np.testing.assert_allclose(joined["rows"], reports["rows"], rtol=1e-6)
    draws = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(4)]
    np.testing.assert_allclose(mean["drawn"], np.mean(draws), rtol=1e-6)
