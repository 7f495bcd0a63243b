"""What a device on a ring has of another one's part, and the parts of all as one."""

import jax
import jax.numpy as jnp


def part_at(x: jax.Array, axes: str | tuple[str, ...], axis: int, by: int) -> jax.Array:
    """Of x, along a dim, the part of the device at distance `by` of this one on the ring."""
    devices = jax.lax.axis_size(axes)
    size, device = x.shape[axis] // devices, (jax.lax.axis_index(axes) + by) % devices
    return jax.lax.dynamic_slice_in_dim(x, device * size, size, axis)


def joined_parts(
    parts: list[jax.Array], axes: str | tuple[str, ...], axis: int, by: tuple[int, ...]
) -> jax.Array:
    """The inverse: parts of the devices at these distances, each at the place of its device."""
    first, devices = parts[0], len(parts)
    size, device = first.shape[axis], jax.lax.axis_index(axes)
    shape = (*first.shape[:axis], size * devices, *first.shape[axis + 1 :])
    whole = jnp.zeros(shape, first.dtype)
    for part, distance in zip(parts, by, strict=True):
        at = (device + distance) % devices * size
        whole = jax.lax.dynamic_update_slice_in_dim(whole, part, at, axis)
    return whole
