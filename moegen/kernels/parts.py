"""One device's part of what all devices hold."""

import jax


def own_part(x: jax.Array, axes: str | tuple[str, ...], axis: int) -> jax.Array:
    """The part of x along a dim that belongs to this device of the mesh axes."""
    size = x.shape[axis] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axes) * size, size, axis)
