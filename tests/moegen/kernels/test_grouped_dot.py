"""Grouped products against one dense product per expert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moegen.kernels import activations
from moegen.kernels.grouped_dot import blocks, ragged, runs
from moegen.tune.formats import balanced_block

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@st.composite
def groupings(draw):
    """(sizes [E], block, rows): experts may be empty, and rows may be left over."""
    block = draw(st.sampled_from([1, 4]))
    experts = draw(st.sampled_from([1, 4]))
    counts = draw(st.lists(st.integers(0, 3), min_size=experts, max_size=experts))
    return np.asarray(counts, np.int32) * block, block, 12 * block


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def owners(sizes, rows):
    """The rows of each expert."""
    ends = np.cumsum(sizes)
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


@given(groupings())
def test_block_experts(grouping):
    sizes, block, rows = grouping
    got = np.repeat(blocks.block_experts(jnp.asarray(sizes), rows, block), block)
    want = np.full(rows, len(sizes))
    for e, mine in enumerate(owners(sizes, rows)):
        want[mine] = e
    np.testing.assert_array_equal(got, want)


@given(groupings())
def test_grouped_dot(grouping):
    sizes, block, rows = grouping
    a, w = random(0, rows, 3), random(1, len(sizes), 3, 2)
    got = blocks.grouped_dot_blocks("ND,DF->NF", a, jnp.asarray(w), jnp.asarray(sizes), block)
    by_xla = ragged.grouped_dot_ragged(jnp.asarray(a), jnp.asarray(w), jnp.asarray(sizes))
    by_run = runs.grouped_dot_runs(
        "ND,DF->NF", jnp.asarray(a), jnp.asarray(w), jnp.asarray(sizes), block
    )
    assert got.shape == by_run.shape == (rows, 2)
    for e, mine in enumerate(owners(sizes, rows)):
        np.testing.assert_allclose(got[mine], a[mine] @ w[e], **CLOSE)
        np.testing.assert_allclose(by_xla[mine], a[mine] @ w[e], **CLOSE)
        np.testing.assert_allclose(by_run[mine], a[mine] @ w[e], **CLOSE)


@given(groupings())
def test_grouped_outer(grouping):
    sizes, block, rows = grouping
    a, b = random(0, rows, 3), random(1, rows, 2)
    want = np.stack([a[mine].T @ b[mine] for mine in owners(sizes, rows)])
    got = blocks.grouped_outer_blocks(
        "ND,NF->DF", a, b, jnp.asarray(sizes), block, (len(sizes), 3, 2)
    )
    np.testing.assert_allclose(got, want, **CLOSE)
    by_run = runs.grouped_outer_runs(
        "ND,NF->DF", jnp.asarray(a), jnp.asarray(b), jnp.asarray(sizes), block, want.shape
    )
    np.testing.assert_allclose(by_run, want, **CLOSE)
    by_xla = ragged.grouped_outer_ragged(jnp.asarray(a), jnp.asarray(b), jnp.asarray(sizes))
    np.testing.assert_allclose(by_xla, want, **CLOSE)


def test_runs_of_blocks():
    """Loads of 11, 0, 2 and 3 blocks: the rest comes first, then the longest runs that fit."""
    lengths = runs.run_lengths(blocks=16, experts=8)
    assert lengths == [1, 2, 3, 6, 12]
    count, start, unbroken = runs.runs_of_blocks(jnp.asarray([11, 0, 2, 3]), lengths)
    found = [
        (lengths[n], e, int(start[n, e]), bool(unbroken[n, e]))
        for n, e in zip(*np.nonzero(np.asarray(count)), strict=True)
    ]
    assert found == [
        (2, 0, 0, True), (2, 2, 11, True), (3, 0, 2, False), (3, 3, 13, True), (6, 0, 5, False),
    ]  # fmt: skip
    count, start, _ = runs.runs_of_blocks(jnp.asarray([5]), [1, 2])
    assert (count[:, 0].tolist(), start[:, 0].tolist()) == ([1, 2], [0, 1])


@pytest.mark.parametrize("spec", ["ND,NF->DF", "ND,NF->FD"])
def test_outer_in_bfloat16_is_the_product_rounded_once(spec):
    a, b = (jnp.asarray(random(seed, 8, dim), jnp.bfloat16) for seed, dim in ((0, 3), (1, 2)))
    got = runs.outer(spec, a, b)
    want = jnp.einsum(spec, a.astype(jnp.float32), b.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


@pytest.mark.parametrize(("rows", "experts", "block"), [(800, 8, 10), (800, 32, 13), (8, 4, 2)])
def test_balanced_loads_are_hardly_padded(rows, experts, block):
    """The block divides the mean load, or nearly: at most one row more per expert."""
    assert balanced_block(rows, experts) == block
    mean = -(-rows // experts)
    assert -(-mean // block) * block <= mean + 1


@given(groupings())
def test_grouped_sum_and_per_row(grouping):
    sizes, block, rows = grouping
    a, values = random(0, rows, 3), random(1, len(sizes), 3)
    total = blocks.grouped_sum(jnp.asarray(a), jnp.asarray(sizes), block)
    copies = blocks.per_row(jnp.asarray(values), jnp.asarray(sizes), rows)
    for e, mine in enumerate(owners(sizes, rows)):
        np.testing.assert_allclose(total[e], a[mine].sum(0), **CLOSE)
        np.testing.assert_array_equal(copies[mine], np.broadcast_to(values[e], a[mine].shape))


@pytest.mark.parametrize("block", [1, 4])
def test_sums_of_short_floats_do_not_drift(block):
    """1024 ones in bf16: an accumulator of 8 bits of mantissa would stop at 256."""
    ones, sizes = jnp.ones((1024, 1), jnp.bfloat16), jnp.asarray([1024])
    total = blocks.grouped_sum(ones, sizes, block)
    outer = blocks.grouped_outer_blocks("ND,NF->DF", ones, ones, sizes, block, (1, 1, 1))
    by_run = runs.grouped_outer_runs("ND,NF->DF", ones, ones, sizes, block, (1, 1, 1))
    assert (total.dtype, outer.dtype, by_run.dtype) == (jnp.bfloat16,) * 3
    assert float(by_run[0, 0, 0]) == 1024.0
    assert (float(total[0, 0]), float(outer[0, 0, 0])) == (1024.0, 1024.0)


@pytest.mark.parametrize(
    ("derivative", "function"),
    [
        (activations.gelu_grad, jax.nn.gelu),
        (activations.silu_grad, jax.nn.silu),
        (activations.sigmoid_grad, jax.nn.sigmoid),
        (activations.normal_pdf, jax.scipy.stats.norm.cdf),
    ],
)
def test_activation_derivatives(derivative, function):
    x = jnp.linspace(-4.0, 4.0, 33)
    np.testing.assert_allclose(derivative(x), jax.vmap(jax.grad(function))(x), atol=1e-6)
