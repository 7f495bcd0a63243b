"""The noisy top-k router keeps its promises on weights, padding, priority, losses and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import ShapeError, TraceError
from moegen.routers import noisy_top_k

X = jnp.asarray([[[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])  # expert 0 is preferred, token 0 most
W = jnp.eye(2)


@mg.expert
def identity(x: mg.f32["C D"], one: mg.f32[""]):
    return x * one


def run(x=X, w=W, **settings):
    inputs = {n: settings.pop(n) for n in ("mask", "key", "noise", "budget") if n in settings}
    layer = mg.compile(noisy_top_k.bind(**settings), identity, mg.Schedule(format="slots"))
    params = {"router": {"w": w}, "expert": {"one": jnp.ones(w.shape[1])}}
    return layer(params, x, **inputs)


@pytest.mark.parametrize("form", ["slots", "sorted", "onehot"])
@pytest.mark.parametrize("priority", [False, True])
def test_buffers_of_the_batch_are_those_of_one_group_that_holds_all(form, priority):
    x = jax.random.normal(jax.random.key(0), (3, 6, 4))
    params = {"router": {"w": jax.random.normal(jax.random.key(1), (4, 3))},
              "expert": {"one": jnp.arange(1.0, 4.0)}}  # fmt: skip
    mask = jnp.ones((3, 6), bool).at[1, 2].set(False)
    router = noisy_top_k.bind(k=2, batch_priority=priority)

    def called(router, x, mask):
        layer = mg.compile(router, identity, mg.Schedule(format=form))
        (grad, (y, aux)) = jax.grad(
            lambda p: (lambda y, aux: ((y**2).sum(), (y, aux)))(*layer(p, x, mask=mask)),
            has_aux=True,
        )(params)
        return y, aux, grad

    y, aux, grad = called(router.bind(scope="batch", capacity=2), x, mask)
    merged = (a.reshape(1, 18, *a.shape[2:]) for a in (x, mask))
    whole, one, wanted = called(router.bind(capacity=6), *merged)
    np.testing.assert_allclose(y.reshape(whole.shape), whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(aux["load"].sum(0), one["load"][0])
    assert one["load"][0].max() == 6
    assert aux["load"].max() > 2  # more than a group's own buffer held
    np.testing.assert_allclose(grad["router"]["w"], wanted["router"]["w"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad["expert"]["one"], wanted["expert"]["one"], rtol=1e-5)


def test_shared_buffers_need_a_size():
    with pytest.raises(TraceError, match='scope "batch" with capacity=None') as caught:
        run(scope="batch", dropless=True)
    assert "without one, all are served" in str(caught.value)


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


@pytest.mark.parametrize(
    "budget, served", [(0.0, []), (0.3, [0]), (1 / 3, [0]), (0.4, [0, 2]), (1.0, [0, 1, 2])]
)
@pytest.mark.parametrize("k", [1, 2])
def test_a_budget_serves_the_tokens_with_the_largest_gates(budget, served, k):
    y, aux = run(k=k, dropless=True, budget=jnp.full((1, 3), budget))
    whole, _ = run(k=k, dropless=True)
    assert list(np.flatnonzero(np.abs(y[0]).sum(-1))) == served
    np.testing.assert_array_equal(y[0, served], whole[0, served])
    assert (aux["load"].sum(), aux["asked"].sum()) == (k * len(served), 3 * k)
    np.testing.assert_allclose(aux["dropped"], [1 - len(served) / 3], rtol=1e-6)


def test_gate_entropy_is_that_of_real_tokens_relative_to_an_even_choice():
    gates = np.asarray(jax.nn.softmax(X @ W))[0]
    wanted = -(gates * np.log2(gates)).sum(-1)  # of two experts log2 is log over log E
    for mask in (None, jnp.asarray([[False, True, True]])):
        _, aux = run(k=1, capacity=1, mask=mask)
        of = wanted if mask is None else wanted[1:]
        np.testing.assert_allclose(aux["gate_entropy"], [of.mean()], rtol=1e-5)


def test_padding_is_served_last_whatever_the_budget():
    mask = jnp.asarray([[False, True, True]])
    for budget, served in ((0.3, [2]), (1.0, [1, 2])):
        y, _ = run(k=1, dropless=True, mask=mask, budget=jnp.full((1, 3), budget))
        assert list(np.flatnonzero(np.abs(y[0]).sum(-1))) == served


def test_a_budget_is_per_group_and_goes_through_every_format_without_another_program():
    x = jax.random.normal(jax.random.key(0), (2, 10, 4))
    w = jax.random.normal(jax.random.key(1), (4, 3))
    params = {"router": {"w": w}, "expert": {"one": jnp.ones(3)}}
    gates = np.asarray(jax.nn.softmax(x @ w).max(-1))
    for form in ("onehot", "slots", "sorted"):
        router = noisy_top_k.bind(k=2, dropless=True)
        layer = mg.compile(router, identity, mg.Schedule(format=form))
        for shares in ((0.5, 1.0), (0.2, 0.0), (0.75, 0.1)):
            budget = jnp.broadcast_to(jnp.asarray(shares)[:, None], (2, 10))
            y, _ = layer(params, x, budget=budget)
            for group, share in enumerate(shares):
                best = np.argsort(-gates[group])[: int(np.ceil(share * 10))]
                served = np.flatnonzero(np.abs(y[group]).sum(-1))
                assert set(served) == set(best), (form, shares)
        assert layer.compiled_programs == 1


def test_gradients_pass_through_the_served_tokens_only():
    x = jax.random.normal(jax.random.key(0), (1, 6, 2))
    layer = mg.compile(noisy_top_k.bind(k=1, dropless=True), identity)
    params = {"router": {"w": W}, "expert": {"one": jnp.ones(2)}}
    half = jnp.full((1, 6), 0.5)
    gradient = jax.grad(lambda x: (layer(params, x, budget=half)[0] ** 2).sum())(x)
    served = np.abs(layer(params, x, budget=half)[0]).sum(-1) > 0
    assert served.sum() == 3
    np.testing.assert_array_equal(np.abs(gradient).sum(-1) > 0, served)


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
