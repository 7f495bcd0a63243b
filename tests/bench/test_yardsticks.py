"""bench/yardsticks.py: three ways to store one MLP, with the gradients of jax's own products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench.workloads import Cell, Workload, inputs
from bench.yardsticks import DENSE, dense_inputs, floor, floor_inputs, product

CELL = Cell("tiny", Workload(tokens=6, width=4, hidden=8, experts=3, k=2))


def test_the_dense_mlps_are_one_function() -> None:
    params, x = inputs(CELL)
    results = [DENSE[n](*dense_inputs(n, params, x, CELL.workload.k)) for n in DENSE]
    assert results[0][0].shape == (12, 4)
    assert results[0][1].shape == (6, 3)
    for rows, logits in results[1:]:
        np.testing.assert_allclose(rows, results[0][0], atol=1e-5)
        np.testing.assert_allclose(logits, results[0][1], atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_tuned_product_has_the_plain_gradient(dtype: str, tolerance: float) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (6, 4)).astype(dtype)
    w = jax.random.normal(keys[1], (4, 5)).astype(dtype)
    found = jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(product(x, w))), (0, 1)))(x, w)
    wanted = jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w)), (0, 1))(x, w)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.astype("float32"), theirs.astype("float32"), atol=tolerance)


def test_the_floor_gives_each_expert_an_equal_share() -> None:
    params, x = inputs(CELL)
    weights, rows = floor_inputs(params, x, CELL.workload.k)
    assert rows.shape == (3, 4, 4)
    one = {name: stacked[1] for name, stacked in weights["expert"].items()}
    hidden = jax.nn.gelu(rows[1] @ one["w1"] + one["b1"])
    np.testing.assert_allclose(floor(weights, rows)[1], hidden @ one["w2"] + one["b2"], atol=1e-5)
