"""Row moves against the naive meanings: ties, overflow, empty experts, tokens without a slot."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moegen.kernels.rows import gather

FLOATS = {"rtol": 1e-6, "atol": 1e-6}


@st.composite
def routings(draw):
    """(expert [G, S, K], priority [G, S] or None, E, C): choices may repeat or be -1."""
    # Two shapes: eager JAX compiles every op anew for each of them.
    groups, tokens, choices, experts = draw(st.sampled_from([(1, 1, 1, 1), (2, 5, 2, 3)]))
    flat = draw(
        st.lists(
            st.integers(-1, experts - 1),
            min_size=groups * tokens * choices,
            max_size=groups * tokens * choices,
        )
    )
    expert = np.asarray(flat, np.int32).reshape(groups, tokens, choices)
    ties = st.lists(
        st.sampled_from([0.0, 0.5, 1.0]), min_size=groups * tokens, max_size=groups * tokens
    )
    priority = draw(st.one_of(st.none(), ties))
    if priority is not None:
        priority = np.asarray(priority, np.float32).reshape(groups, tokens)
    return expert, priority, experts, draw(st.sampled_from([1, 3]))


def naive_positions(expert, priority):
    """Queues filled choice by choice, tokens by falling priority; -1 takes no place."""
    place = np.full(expert.shape, -1)
    for g in range(expert.shape[0]):
        order = range(expert.shape[1])
        if priority is not None:
            order = sorted(order, key=lambda s: -priority[g, s])
        queues = {}
        for k in range(expert.shape[2]):
            for s in order:
                e = expert[g, s, k]
                if e >= 0:
                    place[g, s, k] = queues.get(e, 0)
                    queues[e] = place[g, s, k] + 1
    return place


def naive_slots(expert, place, experts, capacity):
    kept = (expert >= 0) & (place < capacity)
    return np.where(kept, expert * capacity + place, experts * capacity)


@given(routings())
def test_queue_positions(routing):
    expert, priority, experts, _ = routing
    got = gather.queue_positions(
        jnp.asarray(expert), None if priority is None else jnp.asarray(priority), experts
    )
    routed = expert >= 0
    np.testing.assert_array_equal(
        np.asarray(got)[routed], naive_positions(expert, priority)[routed]
    )


@given(routings(), st.sampled_from([1, 4]))
def test_sorted_rows(routing, block):
    expert, priority, experts, capacity = routing
    place = naive_positions(expert, priority)
    rows = expert.size + experts * block
    row, sizes = gather.sorted_rows(
        jnp.asarray(expert), jnp.asarray(place), experts, capacity, block, rows
    )
    kept = (expert >= 0) & (place < capacity)
    start, want, want_sizes = 0, np.full(expert.shape, rows), []
    for e in range(experts):
        at = start
        for g in range(expert.shape[0]):
            mine = kept[g] & (expert[g] == e)
            want[g][mine] = at + place[g][mine]
            at += mine.sum()
        want_sizes.append(-(-(at - start) // block) * block)
        start += want_sizes[-1]
    np.testing.assert_array_equal(row, want)
    np.testing.assert_array_equal(sizes, want_sizes)


@given(routings(), st.booleans(), st.integers(0, 2**16))
def test_moves_over_slots(routing, weighted, seed):
    """Buffers [E, G, C]: tokens in, rows out, inner products, and masks, by loops."""
    expert, priority, experts, capacity = routing
    slot = naive_slots(expert, naive_positions(expert, priority), experts, capacity)
    rng = np.random.default_rng(seed)
    groups, tokens, choices = expert.shape
    x = jnp.asarray(rng.normal(size=(groups, tokens, 3)), jnp.float32)
    rows = jnp.asarray(rng.normal(size=(experts, groups, capacity, 3)), jnp.float32)
    weight = rng.normal(size=expert.shape).astype(np.float32)
    scale = weight if weighted else np.ones_like(weight)

    x_, rows_ = np.asarray(x), np.asarray(rows)
    into, out = np.zeros_like(rows_), np.zeros_like(x_)
    products = np.zeros(expert.shape)
    mask = np.zeros((groups, tokens, experts * capacity))
    source = np.full((groups, experts * capacity), tokens * choices)
    for g, s, k in np.ndindex(expert.shape):
        if slot[g, s, k] < experts * capacity:
            e, c = divmod(slot[g, s, k], capacity)
            into[e, g, c] = x_[g, s] * scale[g, s, k]
            out[g, s] += rows_[e, g, c] * scale[g, s, k]
            products[g, s, k] = rows_[e, g, c] @ x_[g, s]
            mask[g, s, slot[g, s, k]] += scale[g, s, k]
            source[g, slot[g, s, k]] = s * choices + k

    w = jnp.asarray(weight) if weighted else None
    found = gather.choice_in_slot(jnp.asarray(slot).reshape(groups, -1), experts * capacity)
    np.testing.assert_array_equal(found, source)
    laid_out = found.reshape(groups, experts, capacity).transpose(1, 0, 2)
    np.testing.assert_allclose(gather.tokens_in_slots(x, laid_out, choices, w), into, **FLOATS)
    np.testing.assert_allclose(
        gather.slots_to_tokens(rows, jnp.asarray(slot), w, capacity), out, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        gather.slots_times_tokens(rows, jnp.asarray(slot), x, jnp.float32, capacity),
        products, rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        gather.slot_masks(jnp.asarray(slot), experts, capacity, jnp.float32, w).reshape(mask.shape),
        mask, **FLOATS,
    )  # fmt: skip


def test_moves_over_sorted_rows():
    """One list of rows: two groups, a choice without a row, an empty row between experts."""
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2) + 1
    row = jnp.asarray([[[0], [4]], [[2], [1]]])  # row 3 is padding, 4 means none
    source = gather.choice_in_slot(row.reshape(1, -1), 4)[0]
    np.testing.assert_array_equal(source, [0, 3, 2, 4])
    rows = gather.tokens_in_slots(jnp.asarray(x), source, 1)
    np.testing.assert_array_equal(rows, [x[0, 0], x[1, 1], x[1, 0], [0, 0]])
    back = gather.slots_to_tokens(rows, row)
    np.testing.assert_array_equal(back, [[x[0, 0], [0, 0]], [x[1, 0], x[1, 1]]])
    products = gather.slots_times_tokens(rows, row, jnp.asarray(x), jnp.float32)
    np.testing.assert_array_equal(products[0], [[5.0], [0.0]])


def test_draws_do_not_depend_on_other_groups():
    key = jax.random.key(1)
    many = gather.group_draws(jax.random.normal, key, 3, (4, 2, 5), jnp.float32)
    few = gather.group_draws(jax.random.normal, key, 3, (2, 2, 5), jnp.float32)
    np.testing.assert_array_equal(many[:2], few)
    other = gather.group_draws(jax.random.normal, key, 4, (2, 2, 5), jnp.float32)
    assert not np.any(np.asarray(few) == np.asarray(other))
