"""Products of a few rows with the weights of many experts, for XLA on CPU."""

import jax
import jax.numpy as jnp


def dot_weights_left(rows: jax.Array, weights: jax.Array, height: int = 32) -> jax.Array:
    """Rows [E, ..., D] times the weights [E, F, D] of their expert, summed over D: [E, ..., F].

    XLA on CPU packs the right operand of a product whole, which takes longer than a product of
    25 rows; so the weights are the left one, and rows are padded to a multiple of `height`. The
    barrier keeps it from turning that back.
    """
    experts, depth = rows.shape[0], rows.shape[-1]
    flat = rows.reshape(experts, -1, depth)
    count = flat.shape[1]
    padded = jnp.pad(flat, ((0, 0), (0, -count % height), (0, 0)))
    made = jax.lax.dot_general(weights, padded, (((2,), (2,)), ((0,), (0,))))
    made = jax.lax.optimization_barrier(made)[:, :, :count].swapaxes(1, 2)
    out: jax.Array = made.reshape(*rows.shape[:-1], weights.shape[1])
    return out
