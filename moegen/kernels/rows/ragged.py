"""Rows sent straight to their places in the lists of the devices that hold their experts.

`counts` i32[devices, experts] says how many rows of each expert each device has; a device's rows
are in the order of experts, and those of an expert arrive in the order of devices.
"""

import jax
import jax.numpy as jnp


def own_sizes(counts: jax.Array, axes: str | tuple[str, ...], block: int) -> jax.Array:
    """Rows of each of this device's experts, padded to a multiple of `block`: i32[1, experts]."""
    sizes = -(-counts.sum(axis=0) // block) * block
    return own_columns(sizes[None], axes)


def own_columns(counts: jax.Array, axes: str | tuple[str, ...]) -> jax.Array:
    """Those of this device's experts."""
    each = counts.shape[1] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(counts, jax.lax.axis_index(axes) * each, each, 1)


def row_starts(counts: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """Where rows i32[devices, experts] start: among a device's own, and where they arrive."""
    devices, experts = counts.shape
    sizes = -(-counts.sum(axis=0) // block) * block
    each = sizes.reshape(devices, experts // devices)
    first = (jnp.cumsum(each, axis=1) - each).reshape(experts)
    return jnp.cumsum(counts, axis=1) - counts, first + jnp.cumsum(counts, axis=0) - counts


def send_ragged(
    x: jax.Array, counts: jax.Array, axes: str | tuple[str, ...], rows: int, block: int
) -> jax.Array:
    """Rows of tokens [Sent, ...] to the `rows` rows of experts of every device."""
    here, there = row_starts(counts, block)
    me, theirs = jax.lax.axis_index(axes), own_columns(counts, axes).reshape(-1)
    none = jnp.zeros((rows, *x.shape[1:]), x.dtype)
    offsets = (here[me], counts[me], there[me], theirs)
    arrived: jax.Array = jax.lax.ragged_all_to_all(x, none, *offsets, axis_name=axes)
    return arrived


def return_ragged(
    y: jax.Array, counts: jax.Array, axes: str | tuple[str, ...], rows: int, block: int
) -> jax.Array:
    """Rows of experts back to the `rows` rows of tokens of every device."""
    here, there = (own_columns(a, axes).reshape(-1) for a in row_starts(counts, block))
    me, theirs = jax.lax.axis_index(axes), own_columns(counts, axes).reshape(-1)
    none = jnp.zeros((rows, *y.shape[1:]), y.dtype)
    offsets = (there, theirs, here, counts[me])
    arrived: jax.Array = jax.lax.ragged_all_to_all(y, none, *offsets, axis_name=axes)
    return arrived


def row_places(
    counts: jax.Array, each: int, sent: int, rows: int, block: int
) -> tuple[jax.Array, jax.Array]:
    """For all rows of all devices i32[devices, sent] the device and the row where they arrive.

    Row `rows` of device `devices` where there is none.
    """
    devices, experts = counts.shape
    here, there = row_starts(counts, block)
    at = jnp.arange(sent)
    expert = jnp.sum(at[None, :, None] >= (here + counts)[:, None, :], axis=-1)
    shift = jnp.take_along_axis(there - here, jnp.minimum(expert, experts - 1), axis=1)
    there_is = expert < experts
    return jnp.where(there_is, expert // each, devices), jnp.where(there_is, at + shift, rows)


def send_by_gather(
    x: jax.Array, counts: jax.Array, axes: str | tuple[str, ...], rows: int, block: int
) -> jax.Array:
    """`send_ragged` where there is no such collective: every device gets all rows and picks."""
    devices, sent = counts.shape[0], x.shape[0]
    device, row = row_places(counts, counts.shape[1] // devices, sent, rows, block)
    row = jnp.where(device == jax.lax.axis_index(axes), row, rows).reshape(-1)
    source = jnp.full((rows,), devices * sent).at[row].set(jnp.arange(devices * sent), mode="drop")
    everyones: jax.Array = jax.lax.all_gather(x, axes, axis=0, tiled=True)
    return everyones.at[source].get(mode="fill", fill_value=0)


def return_by_gather(
    y: jax.Array, counts: jax.Array, axes: str | tuple[str, ...], rows: int, block: int
) -> jax.Array:
    """`return_ragged` where there is no such collective: every device gets all rows and picks."""
    devices, arrived, me = counts.shape[0], y.shape[0], jax.lax.axis_index(axes)
    device, row = row_places(counts, counts.shape[1] // devices, rows, arrived, block)
    everyones: jax.Array = jax.lax.all_gather(y, axes, axis=0, tiled=True)
    return everyones.at[(device * arrived + row)[me]].get(mode="fill", fill_value=0)


KERNELS = {
    "ragged_all_to_all": {"send_rows": send_ragged, "return_rows": return_ragged},
    "all_gather": {"send_rows": send_by_gather, "return_rows": return_by_gather},
}
"""Functions by the name of the collective and of the op."""
