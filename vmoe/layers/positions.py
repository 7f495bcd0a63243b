"""Position embeddings: learned, or fixed sines and cosines of the patch grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmoe.errors import UserError
from vmoe.layers.params import Params

TEMPERATURE = 10_000.0


def init_learned_positions(key: jax.Array, tokens: int, width: int) -> Params:
    """Returns pos_embedding f32[1, tokens, width] drawn from N(0, 0.02)."""
    return {"pos_embedding": 0.02 * jax.random.normal(key, (1, tokens, width))}


def learned_positions(params: Params, x: jax.Array) -> jax.Array:
    """Adds the embedding to tokens x [B, T, D], the class token included.

    Raises:
      UserError: if the parameters are for another number of tokens.
    """
    table = params["pos_embedding"]
    if table.shape[1:] != x.shape[1:]:
        raise UserError(
            f"the image gives {x.shape[1]} tokens, the position embedding has {table.shape[1]}; "
            "fix: use the image size given to init"
        )
    return x + table.astype(x.dtype)


def sincos2d(rows: int, columns: int, width: int) -> jax.Array:
    """Returns f32[rows * columns, width]: sin x, cos x, sin y, cos y, a quarter each.

    Frequencies run from 1 down to 1/10000; the width must be a multiple of 4 and at least 8.

    Source: arXiv:2104.02057.
    """
    quarter = width // 4
    frequency = TEMPERATURE ** (-jnp.arange(quarter, dtype=jnp.float32) / (quarter - 1))
    y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
    angles = (p.reshape(-1, 1).astype(jnp.float32) * frequency for p in (x, y))
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=-1)
