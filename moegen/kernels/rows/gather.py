"""Row moves as gathers: also backwards, so that nothing is ever scattered and added."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def queue_positions(expert: jax.Array, priority: jax.Array | None, num_experts: int) -> jax.Array:
    """Place of each choice i32[G, S, K] in its expert's queue: choice-major, by priority."""
    groups, tokens, choices = expert.shape
    if priority is not None:
        order = jnp.argsort(-priority, axis=1, stable=True)
        expert = jnp.take_along_axis(expert, order[:, :, None], axis=1)
    queue = expert.transpose(0, 2, 1).reshape(groups, choices * tokens)
    hot = (queue[:, :, None] == jnp.arange(num_experts)).astype(jnp.int32)
    count = jnp.cumsum(hot, axis=1)
    place = jnp.sum(count * hot, axis=2).reshape(groups, choices, tokens).transpose(0, 2, 1) - 1
    if priority is not None:
        place = jnp.take_along_axis(place, jnp.argsort(order, axis=1)[:, :, None], axis=1)
    return place


def served_of_all(
    expert: jax.Array, priority: jax.Array | None, num_experts: int, capacity: int
) -> jax.Array:
    """Whether each choice is among the G * capacity that its expert takes from all groups."""
    groups, tokens, choices = expert.shape
    first = None if priority is None else priority.reshape(1, groups * tokens)
    place = queue_positions(expert.reshape(1, groups * tokens, choices), first, num_experts)
    inside = place.reshape(expert.shape) < groups * capacity
    return inside & (expert >= 0) & (expert < num_experts)


def sorted_rows(
    expert: jax.Array, position: jax.Array, num_experts: int, capacity: int, block: int, rows: int
) -> tuple[jax.Array, jax.Array]:
    """Row of each choice in a list sorted by expert (`rows`: none), and rows per expert.

    An expert's rows start at a multiple of `block`; groups follow each other within it.
    """
    hot = expert[..., None] == jnp.arange(num_experts)
    hot = (hot & (position < capacity)[..., None]).astype(jnp.int32)
    count = hot.sum(axis=(1, 2))
    sizes = -(-count.sum(axis=0) // block) * block
    start = jnp.cumsum(sizes) - sizes + jnp.cumsum(count, axis=0) - count
    row = jnp.sum(hot * start[:, None, None, :], axis=-1) + position
    return jnp.where(hot.sum(axis=-1) > 0, row, rows), sizes


def choice_in_slot(slot: jax.Array, slots: int) -> jax.Array:
    """For slot numbers i32[G, A], the choice in each slot i32[G, slots]; A where empty."""
    groups, choices = slot.shape
    group = jnp.arange(groups)[:, None]
    empty = jnp.full((groups, slots), choices, jnp.int32)
    numbers = jnp.broadcast_to(jnp.arange(choices, dtype=jnp.int32), slot.shape)
    return empty.at[group, slot].set(numbers, mode="drop", unique_indices=True)


def tokens_in_slots(
    x: jax.Array, source: jax.Array, choices: int, weight: jax.Array | None = None
) -> jax.Array:
    """Rows of x[G, S, ...] for choice numbers [E, G, C] in a group, or [N] over all groups.

    Empty slots get 0. With a weight [G, S, K], rows are multiplied by their choice's.
    """
    groups, tokens = x.shape[:2]
    per_group = tokens * choices
    if source.ndim == 1:
        choice = source
    else:
        group = jnp.arange(groups, dtype=source.dtype)[:, None]
        choice = jnp.where(source < per_group, group * per_group + source, groups * per_group)
    flat = x.reshape(groups * tokens, *x.shape[2:])
    rows = flat.at[choice // choices].get(mode="fill", fill_value=0)
    if weight is None:
        return rows
    scale = weight.reshape(-1).at[choice].get(mode="fill", fill_value=0).astype(x.dtype)
    return rows * scale.reshape(*scale.shape, *(1,) * (x.ndim - 2))


def slots_of_items(token: jax.Array, tokens: int) -> jax.Array:
    """For tokens i32[G, E, C] named by slots, each token's slot at each expert i32[G, S, E].

    A slot is e * C + c; E * C where the expert did not take the token.
    """
    groups, experts, capacity = token.shape
    slot = jnp.arange(experts * capacity, dtype=jnp.int32).reshape(1, experts, capacity)
    none = jnp.full((groups, tokens, experts), experts * capacity, jnp.int32)
    group, expert = jnp.arange(groups)[:, None, None], jnp.arange(experts)[None, :, None]
    return none.at[group, token, expert].set(jnp.broadcast_to(slot, token.shape), mode="drop")


def items_in_slots(x: jax.Array, token: jax.Array) -> jax.Array:
    """Rows of x[G, S, ...] at the tokens i32[G, E, C] that the slots name: [E, G, C, ...]."""
    groups, tokens = x.shape[:2]
    group = jnp.arange(groups, dtype=token.dtype)[:, None, None]
    flat = x.reshape(groups * tokens, *x.shape[2:])
    return flat[(group * tokens + token).transpose(1, 0, 2)]


def slot_rows(
    rows: jax.Array, slot: jax.Array, capacity: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Flattened rows, and where each choice's row is: out of range where it has none.

    rows: [E, G, C, ...] with slot = expert * C + place, or [N, ...] with slot = row.
    """
    if capacity is None:
        return rows, slot
    experts, groups = rows.shape[:2]
    group = jnp.arange(groups, dtype=slot.dtype)[:, None, None]
    at = (slot // capacity) * (groups * capacity) + group * capacity + slot % capacity
    at = jnp.where(slot < experts * capacity, at, experts * groups * capacity)
    return rows.reshape(experts * groups * capacity, *rows.shape[3:]), at


def own_slots(slot: jax.Array, axes: str | tuple[str, ...], slots: int) -> jax.Array:
    """Slot numbers among the `slots` of this device's experts; past the end for other devices'."""
    own = slot - jax.lax.axis_index(axes) * slots
    return jnp.where((own >= 0) & (own < slots), own, slots)


def slots_to_tokens(
    rows: jax.Array,
    slot: jax.Array,
    weight: jax.Array | None = None,
    capacity: int | None = None,
) -> jax.Array:
    """For each token [G, S, ...] the sum of its choices' rows, times their weights if given."""
    flat, at = slot_rows(rows, slot, capacity)
    parts = []
    for k in range(slot.shape[2]):
        part = flat.at[at[:, :, k]].get(mode="fill", fill_value=0)
        if weight is not None:
            scale = weight[:, :, k].astype(part.dtype)
            part = part * scale.reshape(*scale.shape, *(1,) * (part.ndim - 2))
        parts.append(part)
    return functools.reduce(jnp.add, parts)


def slots_times_tokens(
    rows: jax.Array,
    slot: jax.Array,
    x: jax.Array,
    dtype: jax.typing.DTypeLike,
    capacity: int | None = None,
) -> jax.Array:
    """For each choice [G, S, K], the inner product of its row with its token's x[G, S, ...]."""
    flat, at = slot_rows(rows, slot, capacity)
    axes = tuple(range(2, x.ndim))

    # A product, not a sum: XLA on CPU adds up along the last axis number by number (jax 0.10).
    def inner(row: jax.Array) -> jax.Array:
        return jax.lax.dot_general(
            row, x, ((axes, axes), ((0, 1), (0, 1))),
            precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype,
        )  # fmt: skip

    products = [
        inner(flat.at[at[:, :, k]].get(mode="fill", fill_value=0)) for k in range(slot.shape[2])
    ]
    return jnp.stack(products, axis=-1)


def slot_masks(
    slot: jax.Array,
    experts: int,
    capacity: int,
    dtype: jax.typing.DTypeLike,
    weight: jax.Array | None = None,
) -> jax.Array:
    """One-hot places [G, S, E, C], summed over choices, each times its weight if given."""
    parts = []
    for k in range(slot.shape[2]):
        hot = jax.nn.one_hot(slot[:, :, k], experts * capacity, dtype=dtype)
        parts.append(hot if weight is None else hot * weight[:, :, k, None].astype(dtype))
    return functools.reduce(jnp.add, parts).reshape(*slot.shape[:2], experts, capacity)


def group_draws(
    sample: Callable[..., jax.Array],
    key: jax.Array,
    stream: int,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
    axes: str | tuple[str, ...] = (),
) -> jax.Array:
    """Draws for [G, ...], each group from its own key: the same on any number of devices.

    With mesh axes, G counts the groups of this device, and keys are those of all devices' groups.
    """
    key = jax.random.fold_in(key, stream)
    first = jax.lax.axis_index(axes) * shape[0] if axes else 0
    groups = first + jnp.arange(shape[0])
    keys = jax.vmap(lambda group: jax.random.fold_in(key, group))(groups)
    return jax.vmap(lambda one: sample(one, shape[1:], dtype))(keys)
