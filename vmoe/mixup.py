"""Mixup: images and their labels averaged with others of the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmoe.config import MixupConfig

Batch = dict[str, jax.Array]


def mixup(config: MixupConfig, batch: Batch, key: jax.Array) -> Batch:
    """The batch with row b of every array replaced by sum_i a_i * row[b + i].

    The shares a are one Dirichlet draw for the whole batch, largest first, so that an image
    outweighs those mixed into it.

    Args:
      config: concentration and number of images; concentration 0 leaves the batch as it is.
      batch: images f32[B, ...] and labels f32[B, classes], shares of the classes.
      key: of the draw.

    Source: arXiv:1710.09412; more than two images and the order as in the released V-MoE code.
    """
    if not config.concentration:
        return batch
    shares = jax.random.dirichlet(key, jnp.full((config.images,), config.concentration))
    shares = jnp.sort(shares, descending=True)
    return {name: mixed(array, shares) for name, array in batch.items()}


def mixed(array: jax.Array, shares: jax.Array) -> jax.Array:
    """sum_i shares[i] * roll(array, -i) along the batch."""
    return sum(share * jnp.roll(array, -i, axis=0) for i, share in enumerate(shares))  # type: ignore[return-value]
