"""tune/few_rows.py: weights go left for the gradients of a few rows, on CPUs, and only there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.experts import mlp
from moegen.routers import noisy_top_k


def layer(tokens=24, target="cpu", hidden=512):
    made = mg.compile(
        noisy_top_k.bind(k=1, noise_std=0.0), mlp, mg.Schedule(format="slots", target=target)
    )
    x = jax.random.normal(jax.random.key(0), (1, tokens, 512))
    return made, made.init(jax.random.key(1), x, experts=2, hidden=hidden), x


@pytest.mark.parametrize(
    ("settings", "products"),
    [({}, 2), ({"tokens": 400}, 0), ({"target": "tpu_v5e"}, 0), ({"hidden": 64}, 0)],
    ids=["few rows", "many rows", "another device", "small weights"],
)
def test_both_gradients_of_rows_have_it(settings, products):
    made, params, x = layer(**settings)
    source = made.lower(params, x).source()
    assert len(re.findall(r"dot_weights_left\(\w+, ", source)) == products


def test_a_layer_has_the_gradients_of_sorted_rows():
    made, params, x = layer()
    router = noisy_top_k.bind(k=1, noise_std=0.0)
    other = mg.compile(router, mlp, mg.Schedule(format="sorted"))

    def gradients(layer):
        return jax.grad(lambda p, x: jnp.sum(jnp.cos(layer(p, x)[0])), argnums=(0, 1))(params, x)

    found, expected = (jax.tree.leaves(gradients(one)) for one in (made, other))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))
