"""Derivatives of activations that jax.nn has no name for."""

import jax
import jax.numpy as jnp


def gelu_grad(x: jax.Array) -> jax.Array:
    """Derivative of GELU in its tanh form."""
    scale = 0.7978845608028654
    t = jnp.tanh(scale * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x**2)


def silu_grad(x: jax.Array) -> jax.Array:
    """Derivative of x * sigmoid(x)."""
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


def sigmoid_grad(x: jax.Array) -> jax.Array:
    """Derivative of the logistic function."""
    s = jax.nn.sigmoid(x)
    return s * (1 - s)


def normal_pdf(x: jax.Array) -> jax.Array:
    """Density of the standard normal."""
    return 0.3989422804014327 * jnp.exp(-0.5 * x * x)
