"""Dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets each element to 0 with probability `rate` and scales the others by 1 / (1 - rate).

    Every element has its own draw, so examples, tokens and heads differ. No key or rate 0: x.

    Source: Srivastava et al., JMLR 15 (2014), in its inverted form.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
