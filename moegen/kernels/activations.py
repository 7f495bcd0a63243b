"""Activations in float32 at least, and derivatives that jax.nn has no name for.

In bfloat16 each step of theirs would be rounded, which costs more time than all of them on a CPU.
"""

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form."""
    return jax.nn.gelu(widened(x)).astype(x.dtype)


def silu(x: jax.Array) -> jax.Array:
    """The function x * sigmoid(x)."""
    return jax.nn.silu(widened(x)).astype(x.dtype)


def widened(x: jax.Array) -> jax.Array:
    """The array in float32, or its own dtype if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def gelu_grad(x: jax.Array) -> jax.Array:
    """Derivative of GELU in its tanh form."""
    scale, wide = 0.7978845608028654, widened(x)
    t = jnp.tanh(scale * (wide + 0.044715 * wide**3))
    slope = 0.5 * (1 + t) + 0.5 * wide * (1 - t * t) * scale * (1 + 3 * 0.044715 * wide**2)
    return slope.astype(x.dtype)


def silu_grad(x: jax.Array) -> jax.Array:
    """Derivative of x * sigmoid(x)."""
    wide = widened(x)
    s = jax.nn.sigmoid(wide)
    return (s * (1 + wide * (1 - s))).astype(x.dtype)


def sigmoid_grad(x: jax.Array) -> jax.Array:
    """Derivative of the logistic function."""
    s = jax.nn.sigmoid(x)
    return s * (1 - s)


def normal_pdf(x: jax.Array) -> jax.Array:
    """Density of the standard normal."""
    return 0.3989422804014327 * jnp.exp(-0.5 * x * x)
