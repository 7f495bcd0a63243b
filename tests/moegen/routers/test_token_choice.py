"""Token-choice routers against a dense reference: every expert on every token, then weighted.

A reference says, in a few lines of jax.numpy, how much of each expert each token gets. Dropless
layers must give exactly that, in every format, with the same gradients.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen import routers
from moegen.errors import MoegenError
from moegen.experts import mlp
from moegen.routers.loss_free import update_bias

G, S, D, E, F = 2, 12, 6, 4, 5


def chosen(score, k):
    """1 at the k largest scores of each token [..., E]."""
    _, index = jax.lax.top_k(score, k)
    return jax.nn.one_hot(index, score.shape[-1]).sum(-2)


def over_sum(w):
    return w / w.sum(-1, keepdims=True)


def mixtral(p, x):
    gates = jax.nn.softmax(x @ p["w"])
    return over_sum(gates * chosen(gates, 2))


def switch(p, x):
    gates = jax.nn.softmax(x @ p["w"])
    return gates * chosen(gates, 1)


def sigmoid_top_k(p, x):
    score = jax.nn.sigmoid(x @ p["w"])
    return 1.5 * over_sum(score * chosen(score, 2))


def loss_free(p, x):
    score = jax.nn.sigmoid(x @ p["w"])
    return over_sum(score * chosen(score + p["bias"], 2))


def group_limited(p, x):
    gates = jax.nn.softmax(x @ p["w"])
    best = gates.reshape(*gates.shape[:-1], 2, 2).max(-1)
    allowed = jnp.repeat(chosen(best, 1), 2, axis=-1)
    return gates * chosen(gates * allowed, 2)


def hash_layer(p, x):
    ids = jnp.arange(G * S).reshape(G, S)
    first = ids * 40503 % E
    hot = jax.nn.one_hot(first, E) + jax.nn.one_hot((first + E // 2) % E, E)
    return hot / 2


def null_experts(p, x):
    gates = jax.nn.softmax(jnp.concatenate([x @ p["w"], x @ p["w_null"]], -1))
    true = (gates * chosen(gates, 2))[..., :E]
    return true / jnp.maximum(true.sum(-1, keepdims=True), 1e-9)


def shared_experts(p, x):
    gates = jax.nn.softmax(x @ p["w"])
    return jnp.concatenate([jnp.ones((*x.shape[:-1], 1)), gates * chosen(gates, 2)], -1)


CASES = {
    "mixtral": (routers.mixtral, mixtral, {}),
    "switch": (routers.switch.bind(dropless=True), switch, {}),
    "sigmoid_top_k": (routers.sigmoid_top_k.bind(scale=1.5), sigmoid_top_k, {}),
    "loss_free": (routers.loss_free, loss_free, {}),
    "group_limited": (routers.group_limited, group_limited, {}),
    "hash_layer": (routers.hash_layer.bind(k=2), hash_layer, {}),
    "null_experts": (routers.null_experts, null_experts, {"Z": 2}),
    "shared_experts": (routers.shared_experts, shared_experts, {"R": E - 1}),
}


def layer_and_params(router, format, dims):
    x = jax.random.normal(jax.random.key(0), (G, S, D))
    layer = mg.compile(router, mlp, mg.Schedule(format=format, block=4))
    params = layer.init(jax.random.key(1), x, experts=E, hidden=F, **dims)
    if "bias" in params["router"]:
        params["router"]["bias"] = jnp.linspace(-0.5, 0.5, E)
    ids = jnp.arange(G * S, dtype=jnp.int32).reshape(G, S)
    inputs = {"ids": ids} if router.name == "hash_layer" else {}
    return layer, params, x, inputs


def dense(reference, params, x):
    e = params["expert"]
    h = jax.nn.gelu(jnp.einsum("gsd,edf->gsef", x, e["w1"]) + e["b1"])
    every = jnp.einsum("gsef,efd->gsed", h, e["w2"]) + e["b2"]
    return jnp.einsum("gse,gsed->gsd", reference(params["router"], x), every)


PAIRS = [(n, f) for n in CASES for f in ("slots", "sorted")] + [("mixtral", "onehot")]
"""Masks hold nothing that depends on the router, so one router is enough there."""


@pytest.mark.parametrize("name,format", PAIRS)
def test_equals_the_dense_reference(name, format):
    router, reference, dims = CASES[name]
    layer, params, x, inputs = layer_and_params(router, format, dims)
    probe = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def of_layer(params, x):
        y, aux = layer(params, x, **inputs)
        return (y * probe).sum(), (y, aux)

    (_, (y, aux)), grads = jax.value_and_grad(of_layer, argnums=(0, 1), has_aux=True)(params, x)
    of_dense = jax.grad(lambda p, x: (dense(reference, p, x) * probe).sum(), argnums=(0, 1))
    np.testing.assert_allclose(y, dense(reference, params, x), rtol=2e-5, atol=2e-6)
    expected = of_dense(params, x)
    for owner in ("router", "expert"):
        # One scale for a router's parameters: w_null has no gradient but rounding, because
        # renormalised weights of true experts do not depend on the null logits.
        scale = max([float(jnp.abs(g).max()) for g in expected[0][owner].values()], default=1.0)
        for name in expected[0][owner]:
            ours, theirs = grads[0][owner][name], expected[0][owner][name]
            np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-5)
    np.testing.assert_allclose(grads[1], expected[1], atol=2e-5 * float(jnp.abs(expected[1]).max()))
    np.testing.assert_array_equal(aux["dropped"], 0.0)


def test_no_gradient_reaches_the_bias():
    layer, params, x, _ = layer_and_params(routers.loss_free, "slots", {})
    grads = jax.grad(lambda p: layer(p, x)[0].sum())(params)
    np.testing.assert_array_equal(grads["router"]["bias"], 0.0)
    assert np.abs(grads["router"]["w"]).max() > 0


def test_update_bias_moves_towards_balance():
    bias = update_bias(jnp.zeros(4), jnp.array([[4.0, 1.0, 0.0, 3.0]]), rate=0.1)
    np.testing.assert_allclose(bias, [-0.1, 0.1, 0.1, -0.1])


def test_loss_free_balances_over_steps():
    """Tokens that all prefer one expert spread as the bias moves."""
    layer, params, x, _ = layer_and_params(routers.loss_free.bind(k=1), "slots", {})
    params["router"]["bias"] = jnp.array([3.0, 0.0, 0.0, 0.0])
    first = layer(params, x)[1]["load"].sum(0)
    assert first[0] == G * S
    for _ in range(60):
        load = layer(params, x)[1]["load"]
        params["router"]["bias"] = update_bias(params["router"]["bias"], load, rate=0.1)
    last = layer(params, x)[1]["load"].sum(0)
    assert last.max() < G * S / 2


def test_switch_jitter_needs_a_key_and_changes_gates():
    layer, params, x, _ = layer_and_params(routers.switch.bind(jitter=0.5), "slots", {})
    still, _ = layer(params, x)
    jittered, _ = layer(params, x, key=jax.random.key(3))
    assert np.abs(still - jittered).max() > 0
    again, _ = layer(params, x, key=jax.random.key(3))
    np.testing.assert_array_equal(jittered, again)


def test_sum_priority_serves_the_largest_sum_first():
    """With one slot per expert, the token with the largest sum of weights keeps its choices."""
    weights = jnp.array([[[0.5, 0.4], [0.6, 0.1]]])

    @mg.router
    def fixed(x: mg.f32["S D"], weight: mg.f32["S K"], *, batch_priority: bool | str = "sum"):
        from moegen.routers.common import place

        expert = mg.iota("K", 2) + mg.argmax(weight, over="K") * 0 + mg.cast(x_zero(x), "i32")
        route, report = place(
            expert, weight, k=2, capacity_factor=1.0, capacity=1, multiple_of=None,
            rounding="ceil", dropless=False, batch_priority=batch_priority,
        )  # fmt: skip
        return route, {"kept": mg.cast(mg.kept(route), "f32"), **report}

    def x_zero(x):
        return mg.sum(x, over="D") * 0.0

    @mg.expert
    def same(x: mg.f32["C D"], scale: mg.f32["D"]):
        return x * scale

    params = {"router": {}, "expert": {"scale": jnp.ones((2, 1))}}
    for priority, first in (("sum", 0), ("max", 1)):
        layer = mg.compile(fixed.bind(batch_priority=priority), same, mg.Schedule(format="slots"))
        _, aux = layer(params, jnp.ones((1, 2, 1)), weight=weights)
        np.testing.assert_array_equal(aux["kept"][0, first], [1.0, 1.0])
        np.testing.assert_array_equal(aux["kept"][0, 1 - first], [0.0, 0.0])


@pytest.mark.parametrize(
    "router,dims,message",
    [
        (routers.mixtral.bind(k=5), {}, "k=5 is more than E=4"),
        (routers.group_limited.bind(groups=3), {}, "groups must divide E"),
        (routers.group_limited.bind(k=3), {}, "be at least k"),
        (routers.hash_layer.bind(k=5), {}, "k=5 is not in 1..E=4"),
        (routers.shared_experts, {"R": 4}, "E=4 is not shared=1 + R=4"),
        (
            routers.mixtral.bind(dropless=False, capacity_factor=0.0),
            {},
            "capacity 0 is less than 1",
        ),
    ],
)
def test_refuses_what_does_not_fit(router, dims, message):
    layer, params, x, inputs = layer_and_params(router, "slots", dims)
    with pytest.raises(MoegenError, match=re.escape(message)):
        layer(params, x, **inputs)
