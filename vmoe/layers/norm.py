"""Layer normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmoe.layers.params import Params

EPSILON = 1e-6


def init_layer_norm(width: int, *, bias: bool = True) -> Params:
    """Returns scale ones[width], and bias zeros[width] unless left out."""
    scale = {"scale": jnp.ones((width,), jnp.float32)}
    return scale | ({"bias": jnp.zeros((width,), jnp.float32)} if bias else {})


def layer_norm(params: Params, x: jax.Array) -> jax.Array:
    """Normalises the last dim to mean 0, variance 1; in f32, returned in x's dtype.

    Source: arXiv:1607.06450.
    """
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPSILON) * params["scale"]
    if "bias" in params:
        y = y + params["bias"]
    return y.astype(x.dtype)
