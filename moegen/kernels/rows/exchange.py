"""Row numbers for sending rows to other devices and for putting those that arrive in order."""

import jax
import jax.numpy as jnp


def pair_slots(
    expert: jax.Array,
    position: jax.Array,
    num_experts: int,
    capacity: int,
    devices: int,
    pairs: int,
) -> tuple[jax.Array, jax.Array]:
    """Number of each choice i32[G, S, K] among the rows sent, and rows per expert.

    `pairs` rows may go to each device, in the order of its experts; devices * pairs: none.
    """
    hot = expert[..., None] == jnp.arange(num_experts)
    hot = (hot & (position < capacity)[..., None]).astype(jnp.int32)
    count = hot.sum(axis=(1, 2))
    sizes = count.sum(axis=0)
    each = sizes.reshape(devices, num_experts // devices)
    before = (jnp.cumsum(each, axis=1) - each).reshape(num_experts)
    first = jnp.arange(num_experts) // (num_experts // devices) * pairs
    start = first + before + jnp.cumsum(count, axis=0) - count
    slot = jnp.sum(hot * start[:, None, None, :], axis=-1) + position
    return jnp.where(hot.sum(axis=-1) > 0, slot, devices * pairs), sizes


def arrived_rows(
    counts: jax.Array, pairs: int, rows: int, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How rows that arrived are grouped by expert.

    Args:
      counts: i32[devices, experts], rows of each of this device's experts from each device.
      pairs: rows that may come from a device.
      rows: rows of the grouped list.
      block: an expert's rows start at a multiple of this.

    Returns:
      For each row of the list the one that arrived (devices * pairs: none), for each that
      may arrive its row (rows: none), and the rows per expert.
    """
    devices, experts = counts.shape
    total = counts.sum(axis=0)
    sizes = -(-total // block) * block
    start = jnp.cumsum(sizes) - sizes + jnp.cumsum(counts, axis=0) - counts
    ends = jnp.cumsum(counts, axis=1)
    at = jnp.arange(pairs)
    expert = jnp.sum(at[None, :, None] >= ends[:, None, :], axis=-1)
    own = jnp.minimum(expert, experts - 1)
    shift = jnp.take_along_axis(start - ends + counts, own, axis=1)
    back = jnp.where(expert < experts, shift + at, rows).reshape(devices * pairs)
    none = jnp.full((rows,), devices * pairs, jnp.int32)
    take = none.at[back].set(jnp.arange(devices * pairs, dtype=jnp.int32), mode="drop")
    return take, back, sizes
