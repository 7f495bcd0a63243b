"""The noisy top-k router keeps its promises on weights, padding, priority, losses and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import ShapeError
from moegen.routers import noisy_top_k

X = jnp.asarray([[[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])  # expert 0 is preferred, token 0 most
W = jnp.eye(2)


@mg.expert
def identity(x: mg.f32["C D"], one: mg.f32[""]):
    return x * one


def run(x=X, w=W, **settings):
    inputs = {n: settings.pop(n) for n in ("mask", "key", "noise") if n in settings}
    layer = mg.compile(noisy_top_k.bind(**settings), identity, mg.Schedule(format="slots"))
    params = {"router": {"w": w}, "expert": {"one": jnp.ones(w.shape[1])}}
    return layer(params, x, **inputs)


def test_weights_are_the_raw_gates():
    y, _ = run(k=1, dropless=True)
    gates = jax.nn.softmax(X @ W)
    np.testing.assert_allclose(y, X * gates[..., :1], rtol=1e-6)
    both, _ = run(k=2, dropless=True)
    np.testing.assert_allclose(both, X, rtol=1e-6)


@pytest.mark.parametrize("batch_priority, served", [(False, [0, 1]), (True, [0, 2])])
def test_priority_decides_who_gets_the_slots(batch_priority, served):
    y, aux = run(k=1, capacity=2, batch_priority=batch_priority)
    assert list(np.flatnonzero(np.abs(y[0]).sum(-1))) == served
    np.testing.assert_array_equal(aux["load"], [[2, 0]])
    np.testing.assert_allclose(aux["dropped"], [1 / 3], rtol=1e-6)


def test_padding_takes_no_slot():
    mask = jnp.asarray([[False, True, True]])
    y, aux = run(k=1, capacity=2, mask=mask)
    assert list(np.flatnonzero(np.abs(y[0]).sum(-1))) == [1, 2]
    np.testing.assert_array_equal(aux["dropped"], [0.0])


def test_load_loss_comes_with_noise_only():
    assert "load_loss" not in run()[1]
    assert "load_loss" not in run(key=jax.random.key(0), noise_std=0.0)[1]
    assert "load_loss" in run(key=jax.random.key(0))[1]


def test_auxiliary_loss_is_the_weighted_sum():
    weights = {
        "importance_loss_weight": 0.5,
        "load_loss_weight": 0.25,
        "gshard_loss_weight": 2.0,
    }
    _, aux = run(key=jax.random.key(0), **weights)
    total = sum(w * aux[n.removesuffix("_weight")] for n, w in weights.items())
    np.testing.assert_allclose(aux["auxiliary_loss"], total, rtol=1e-6)


def test_a_recorded_draw_replaces_the_key():
    noise = jnp.asarray([[[0.0, 20.0]] * 3])
    y, aux = run(k=1, noise=noise, dropless=True)
    np.testing.assert_array_equal(aux["load"], [[0, 3]])
    np.testing.assert_allclose(run(k=1, noise=noise, key=jax.random.key(1), dropless=True)[0], y)


def test_more_choices_than_experts():
    with pytest.raises(ShapeError, match="k=3 is more than E=2"):
        run(k=3)


def test_capacity_below_one():
    with pytest.raises(ShapeError, match="capacity 0 is less than 1"):
        run(k=1, capacity=0)
