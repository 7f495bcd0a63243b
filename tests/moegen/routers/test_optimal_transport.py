"""Optimal-transport routers: recorded cases in every format, the solvers, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen import routers
from moegen.errors import LoweringError, ShapeError, TraceError
from moegen.experts import mlp
from moegen.routers import transport_expert_choice, transport_token_choice
from moegen.routers.optimal_transport import (
    TOLERANCE,
    expert_semi_dual,
    simplex_projection,
    sinkhorn,
    token_semi_dual,
)
from tests.moegen.routers import recorded
from tests.moegen.routers.recorded import (
    arrays_of,
    labelled,
    relative_error,
    split_columns,
    token_to_token,
    with_labels,
    with_one_hot_tokens,
)

RELATIVE = 2e-6
"""The plan's iterations are the recorded ones, so that stopping them early loosens nothing."""
CASES, ARRAYS = recorded.load("router_transport")
EXPERTS = ARRAYS["kernel"].shape[1]
BY_PLAN = [c for c in CASES if not c["settings"]["use_softmax_combine_weights"]]
BY_TOKEN = [c for c in CASES if c["router"] == "transport_token_choice"]


@recorded.pairs(CASES, {"slots": 2, "onehot": 6})
def test_recorded(case, form, record_property):
    check_recorded(case, form, record_property)


@recorded.pairs(BY_TOKEN, {"sorted": 4})
def test_recorded_token_choice(case, form, record_property):
    check_recorded(case, form, record_property)


def check_recorded(case, form, record_property):
    want, inputs = arrays_of(case, ARRAYS), ARRAYS["inputs"]
    router = getattr(routers, case["router"])

    @mg.router
    def by_inputs(x: mg.f32["S W"], inputs: mg.f32["S D"], w: mg.f32["D E"]):
        return router(inputs, w, **case["settings"])

    layer = mg.compile(by_inputs, labelled, mg.Schedule(format=form))

    def loss(w, inputs):
        params = {"router": {"w": w}, "expert": with_labels(EXPERTS)}
        y, aux = layer(params, with_one_hot_tokens(inputs), inputs=inputs)
        paths = split_columns(y, inputs.shape[-1])[1]
        # A token reaches an expert through one slot, so this is the sum of squared weights.
        return (paths**2).sum(), (paths, aux)

    given = (ARRAYS["kernel"], inputs)
    (_, (paths, aux)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(*given)
    got = {f"metrics/{n}": v for n, v in aux.items()} | {"paths": paths}
    got |= {"grad_kernel": grads[0], "grad_inputs": grads[1]}
    want["paths"] = token_to_token(want["combine_weights"], want["dispatch_weights"])
    np.testing.assert_array_equal(np.asarray(paths) > 0, want["paths"] > 0)
    assert want.pop("metrics/auxiliary_loss") == 0  # the plan balances, no loss does
    names = [n for n in want if n.startswith(("metrics/", "grad_", "paths"))]
    assert len(names) >= 9
    recorded.check({n: relative_error(got[n], want[n]) for n in names}, RELATIVE, record_property)


@pytest.mark.parametrize("case", BY_PLAN, ids=lambda c: f"case{c['case']}")
def test_recorded_plans(case, record_property):
    settings, want = case["settings"], arrays_of(case, ARRAYS)
    tokens, capacity = ARRAYS["inputs"].shape[1], want["combine_weights"].shape[-1]
    by_token = case["router"] == "transport_token_choice"
    limit, everything = (settings["k"], EXPERTS) if by_token else (capacity, tokens)
    top = limit if settings["method"] == "k_sparse" else everything
    solve = token_semi_dual if by_token else expert_semi_dual
    gates = jax.nn.softmax(ARRAYS["inputs"] @ ARRAYS["kernel"])
    plan = jax.vmap(
        lambda g: solve(g, jnp.ones(tokens), top=top, iterations=settings["iterations"])
    )(gates)
    recorded.check({"plan": relative_error(plan, want["plan"])}, RELATIVE, record_property)


# ---- the solvers

S, E = 12, 4
LOGITS = 2.0 * jax.random.normal(jax.random.key(5), (S, E))
ONES = jnp.ones(S)


def float64_sinkhorn(logits, iterations):
    """The published iteration, without logarithms."""
    kernel = np.exp(np.asarray(logits, np.float64))
    u = np.ones(len(kernel))
    for _ in range(iterations):
        v = len(kernel) / kernel.shape[1] / (kernel.T @ u)
        u = 1 / (kernel @ v)
    return u[:, None] * kernel * v


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_sinkhorn_is_the_published_iteration(iterations):
    plan = sinkhorn(LOGITS, ONES, iterations=iterations)
    np.testing.assert_allclose(plan, float64_sinkhorn(LOGITS, iterations), rtol=2e-5)
    np.testing.assert_allclose(plan.sum(1), 1.0, rtol=1e-6)


def test_sinkhorn_balances():
    plan = sinkhorn(LOGITS, ONES, iterations=200)
    np.testing.assert_allclose(plan.sum(0), S / E, rtol=1e-4)


def test_sinkhorn_stands_large_logits():
    plan = sinkhorn(200.0 * LOGITS, ONES, iterations=20)
    assert np.isfinite(plan).all()
    np.testing.assert_allclose(plan.sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("solve, top", [(token_semi_dual, E), (expert_semi_dual, S)])
def test_squared_l2_reaches_both_marginals(solve, top):
    gates = jax.nn.softmax(LOGITS)
    plan = solve(gates, ONES, top=top, iterations=2000)
    assert (plan >= 0).all()
    # Adam's last step is taken from a point where the error is within the tolerance.
    assert np.linalg.norm(plan.sum(1) - 1) < 2 * TOLERANCE
    assert np.linalg.norm(plan.sum(0) - S / E) < 2 * TOLERANCE


@pytest.mark.parametrize("solve", [sinkhorn, token_semi_dual, expert_semi_dual])
@pytest.mark.parametrize("real", [0, 7])
def test_padding_sends_no_mass(solve, real):
    mass = (jnp.arange(S) < real).astype(jnp.float32)
    settings = {"iterations": 20} if solve is sinkhorn else {"iterations": 20, "top": E}
    gates = LOGITS if solve is sinkhorn else jax.nn.softmax(LOGITS)
    plan = solve(gates, mass, **settings)
    np.testing.assert_array_equal(plan[real:], 0.0)
    np.testing.assert_allclose(plan.sum(), real, rtol=1e-5)
    if real:
        alone = solve(gates[:real], ONES[:real], **settings)
        np.testing.assert_allclose(plan[:real], alone, rtol=1e-5, atol=1e-6)


def test_projection_by_hand():
    z = jnp.asarray([[0.9, 0.3, 0.1], [5.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.4, 0.2, 0.3]])
    mass = jnp.asarray([1.0, 2.0, 3.0, 0.0])
    expected = [[0.8, 0.2, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(simplex_projection(z, mass, 3), expected, atol=1e-6)
    sparse = simplex_projection(z, mass, 1)
    np.testing.assert_allclose(sparse[:2], [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], atol=1e-6)


# ---- the routers

G, D = 2, 6


def small(router, form="slots", **settings):
    layer = mg.compile(router.bind(**settings), mlp, mg.Schedule(format=form))
    x = jax.random.normal(jax.random.key(0), (G, S, D))
    return layer, layer.init(jax.random.key(1), x, experts=E, hidden=5), x


def test_sinkhorn_routes_by_its_plan():
    layer, params, x = small(transport_token_choice, method="sinkhorn", k=1, dropless=True)
    _, report = layer(params, x)
    plans = [float64_sinkhorn(g, 20) for g in x @ params["router"]["w"]]
    counts = [np.bincount(p.argmax(1), minlength=E) for p in plans]
    np.testing.assert_array_equal(report["load"], counts)


def test_plan_weights_teach_the_router_nothing():
    layer, params, x = small(transport_token_choice, use_softmax_combine_weights=False)
    gradient = jax.grad(lambda w: layer({**params, "router": {"w": w}}, x)[0].sum())
    np.testing.assert_array_equal(gradient(params["router"]["w"]), 0.0)


@pytest.mark.parametrize("router", [transport_token_choice, transport_expert_choice])
def test_padding_is_routed_as_if_it_were_not_there(router):
    layer, params, x = small(router, capacity=3)
    alone, report = layer(params, x)
    padded = jnp.concatenate([x[:, :7], 9.0 * jnp.ones((G, 5, D)), x[:, 7:]], axis=1)
    real = np.r_[0:7, 12:17]
    mask = jnp.zeros((G, 17), bool).at[:, real].set(True)
    y, masked = layer(params, padded, mask=mask)
    np.testing.assert_allclose(y[:, real], alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y[:, 7:12], 0.0)
    for name, value in report.items():
        np.testing.assert_allclose(masked[name], value, rtol=1e-4, err_msg=name)


def test_emitted_source_names_the_solver_and_its_settings():
    layer, params, x = small(transport_expert_choice, capacity=3)
    source = layer.lower(params, x).source()
    assert "from moegen.routers.optimal_transport import expert_semi_dual as fn_" in source
    assert "functools.partial(fn_expert_semi_dual, top=3, iterations=20)" in source


def test_unknown_methods_and_too_few_iterations_are_refused():
    _, params, x = small(transport_token_choice)
    for settings, message, kind in (
        ({"method": "exact"}, 'method "exact" is unknown', TraceError),
        ({"iterations": 0}, "iterations=0 gives no plan", ShapeError),
    ):
        wrong = mg.compile(transport_token_choice.bind(**settings), mlp)
        with pytest.raises(kind, match=message):
            wrong(params, x)


def test_more_slots_than_tokens_and_sorted_are_refused():
    layer, params, x = small(transport_expert_choice, capacity=13)
    with pytest.raises(ShapeError, match="capacity=13 different tokens, a group has S=12"):
        layer(params, x)
    layer, params, x = small(transport_expert_choice, "sorted", capacity=3)
    with pytest.raises(LoweringError, match="expert choice fills every slot"):
        layer.lower(params, x)
