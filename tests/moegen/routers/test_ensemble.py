"""The partitioned ensemble: recorded cases in every format, members apart, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import ShapeError
from moegen.experts import mlp
from moegen.routers import ensemble, noisy_top_k
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

TOLERANCE = 2e-6
CASES, ARRAYS = recorded.load("router_ensemble")
EXPERTS = 8


def by_position(noise):
    """The recorded draw [M, G, S / M, Q] as [G, S, Q]: position s is of member s mod M."""
    members, groups, rounds, experts = noise.shape
    return noise.transpose(1, 2, 0, 3).reshape(groups, rounds * members, experts)


@recorded.pairs(CASES, {"slots": 1, "onehot": 3, "sorted": 2})
def test_recorded(case, form, record_property):
    want = arrays_of(case, ARRAYS)

    @mg.router
    def by_inputs(
        x: mg.f32["S W"], inputs: mg.f32["S D"], w: mg.f32["D M Q"], noise: mg.f32["S Q"] = None
    ):
        return ensemble(inputs, w, None, noise, **case["settings"])

    layer = mg.compile(by_inputs, labelled, mg.Schedule(format=form))
    assert ("noise_unit" in want) == case["noisy"]
    noise = by_position(want["noise_unit"]) if case["noisy"] else None
    params = {
        "router": {"w": ARRAYS[f"kernel_M{case['members']}"]},
        "expert": with_labels(EXPERTS),
    }
    inputs = ARRAYS["inputs"]
    y, aux = layer(params, with_one_hot_tokens(inputs), inputs=inputs, noise=noise)
    _, paths = split_columns(y, inputs.shape[-1])
    got = {f"metrics/{n}": v for n, v in aux.items()} | {"paths": paths}
    want["paths"] = token_to_token(want["combine_weights"], want["dispatch_weights"])
    np.testing.assert_array_equal(np.asarray(paths) > 0, want["paths"] > 0)
    names = ["paths", *(n for n in want if n.startswith("metrics/"))]
    assert len(names) == 5 if case["noisy"] else 4
    recorded.check({n: relative_error(got[n], want[n]) for n in names}, TOLERANCE, record_property)
    dispatched = want["dispatch_weights"].sum((1, 3))
    np.testing.assert_array_equal(aux["load"], dispatched)


# ---- what it promises beyond the recorded runs

G, S, D, M, Q = 2, 12, 6, 3, 2
E = M * Q


def small(router=ensemble, form="slots", **settings):
    layer = mg.compile(router.bind(**settings), mlp, mg.Schedule(format=form))
    x = jax.random.normal(jax.random.key(0), (G, S, D))
    return layer, layer.init(jax.random.key(1), x, experts=E, hidden=5, M=M, Q=Q), x


@pytest.mark.parametrize("form", ["slots", "sorted"])
def test_each_member_is_a_router_of_its_own(form):
    """Outputs, losses and gradients equal those of M layers over M parts of the tokens."""
    weights = {"importance_loss_weight": 0.3, "load_loss_weight": 0.2, "gshard_loss_weight": 0.1}
    settings = {"k": 2, "dropless": True, **weights}
    layer, params, x = small(form=form, **settings)
    single = mg.compile(noisy_top_k.bind(**settings), mlp, mg.Schedule(format=form))
    noise = jax.random.normal(jax.random.key(2), (G, S, Q))
    probe = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def together(params, x):
        y, aux = layer(params, x, noise=noise)
        return (y * probe).sum() + aux["auxiliary_loss"].sum(), aux

    def apart(params, x):
        total, reports = 0.0, []
        for m in range(M):
            own = {
                "router": {"w": params["router"]["w"][:, m]},
                "expert": jax.tree.map(lambda a, m=m: a[m * Q : m * Q + Q], params["expert"]),
            }
            y, aux = single(own, x[:, m::M], noise=noise[:, m::M])
            total += (y * probe[:, m::M]).sum() + aux["auxiliary_loss"].sum()
            reports.append(aux)
        return total, {n: jnp.stack([r[n] for r in reports], 1) for n in reports[0]}

    (a, aux), grads = jax.value_and_grad(together, (0, 1), has_aux=True)(params, x)
    (b, reports), expected = jax.value_and_grad(apart, (0, 1), has_aux=True)(params, x)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    for name in ("auxiliary_loss", "importance_loss", "load_loss", "gshard_loss"):
        np.testing.assert_allclose(aux[name], reports[name], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(aux["load"], reports["load"].reshape(G, E))
    np.testing.assert_array_equal(aux["dropped"], 0.0)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-4, atol=1e-5), grads, expected
    )


def test_one_member_is_the_plain_router():
    layer = mg.compile(ensemble.bind(k=2), mlp, mg.Schedule(format="slots"))
    plain = mg.compile(noisy_top_k.bind(k=2, capacity_factor=1.5), mlp, mg.Schedule(format="slots"))
    x = jax.random.normal(jax.random.key(0), (G, S, D))
    params = plain.init(jax.random.key(1), x, experts=E, hidden=5)
    y, aux = plain(params, x)
    with_member = {**params, "router": {"w": params["router"]["w"][:, None]}}
    same, report = layer(with_member, x)
    assert relative_error(same, y) < 1e-6
    np.testing.assert_array_equal(report["load"], aux["load"])
    np.testing.assert_allclose(report["gate_entropy"], aux["gate_entropy"], rtol=1e-5)
    np.testing.assert_allclose(report["importance_loss"][:, 0], aux["importance_loss"], rtol=1e-6)


def test_members_start_like_one_router_over_all_experts():
    x = jax.ShapeDtypeStruct((1, S, 256), jnp.float32)
    layer = mg.compile(ensemble, mlp)
    w = layer.init(jax.random.key(1), x, experts=32, hidden=2, M=4, Q=8)["router"]["w"]
    np.testing.assert_allclose(w.std(), 256**-0.5, rtol=0.05)


def test_padding_takes_no_slot():
    layer, params, x = small(k=1)
    mask = jnp.ones((G, S), bool).at[:, 6:].set(False)
    y, aux = layer(params, x, mask=mask)
    np.testing.assert_array_equal(y[:, 6:], 0.0)
    np.testing.assert_array_equal(aux["load"].sum(-1), 6.0)
    gates = jax.nn.softmax(jnp.einsum("gsd,dmq->gsmq", x, params["router"]["w"]))
    own = jnp.stack([gates[:, s, s % M] for s in range(6)], axis=1)
    wanted = -(own * jnp.log(own)).sum(-1).mean(-1) / np.log(Q)
    np.testing.assert_allclose(aux["gate_entropy"], wanted, rtol=1e-5)


def test_members_that_do_not_divide_the_experts_are_refused():
    layer, params, x = small()
    fewer = {**params, "expert": jax.tree.map(lambda a: a[:5], params["expert"])}
    with pytest.raises(ShapeError, match=r"M=3 members with Q=2 experts each.* E=5") as info:
        layer(fewer, x)
    assert "an ensemble size M that divides E" in str(info.value)


def test_members_that_do_not_divide_the_tokens_are_refused():
    layer, params, x = small()
    with pytest.raises(ShapeError, match="S=11 tokens does not hold all M=3 members equally"):
        layer(params, x[:, :11])


def test_more_choices_than_a_member_has_experts_are_refused():
    layer, params, x = small(k=3)
    with pytest.raises(ShapeError, match=r"k=3 is not in 1\.\.E/M=2"):
        layer(params, x)
