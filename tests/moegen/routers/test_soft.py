"""Soft MoE: recorded cases with gradients and similarities, padding, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError, ShapeError, TraceError
from moegen.experts import mlp
from moegen.routers import soft
from moegen.routers.soft import mu_similarity
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

TOLERANCE = 1e-5
BF16_TOLERANCE = 2e-3 + 2**-8
"""What the recorded bf16 run meets itself, and the rounding of y: ours is bf16, that one's f32."""
CASES, ARRAYS = recorded.load("router_soft")
EXPERTS = 4
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"case{c['case']}")


def layer_for(case):
    """The layer of the recorded experiment: what is routed is not what is dispatched."""

    @mg.router
    def by_inputs(
        x: mg.floating["S W"],
        inputs: mg.f32["S D"],
        mu: mg.f32["D E C"],
        scale: mg.f32[""],
        noise: mg.f32["S E C"] = None,
    ):
        return soft(inputs, mu, scale, None, noise, similarities=True, **case["settings"])

    return mg.compile(by_inputs, labelled, mg.Schedule(format="onehot"))


def over_groups(name, value):
    """The recorded metrics are of all groups together, ours per group."""
    kind = name.rpartition("_")[2]
    return {"min": jnp.min, "max": jnp.max, "mean": jnp.mean}[kind](value)


@every_case
def test_recorded(case, record_property):
    want, width = arrays_of(case, ARRAYS), ARRAYS["data"].shape[-1]
    layer = layer_for(case)

    def loss(mu, scale, inputs, data):
        params = {"router": {"mu": mu, "scale": scale}, "expert": with_labels(EXPERTS)}
        noise = want.get("noise_unit")
        y, aux = layer(params, with_one_hot_tokens(data), inputs=inputs, noise=noise)
        combined, paths = split_columns(y, width)
        return (combined * ARRAYS["cotangent"]).sum(), (combined, paths, aux)

    given = (want["mu"], want["scale"], ARRAYS["inputs"], ARRAYS["data"])
    values, grads = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(*given)
    _, (combined, paths, aux) = values
    got = {f"metrics/{n}": over_groups(n, v) for n, v in aux.items()}
    got |= {f"metrics/{n}": v for n, v in mu_similarity(jnp.asarray(want["mu"])).items()}
    got |= {"combined_f32": combined, "paths": paths}
    got |= {f"grad_{n}": g for n, g in zip(("mu", "scale", "inputs", "data"), grads, strict=True)}
    want["paths"] = token_to_token(want["combine_weights"], want["dispatch_weights"])
    assert want.pop("metrics/auxiliary_loss") == 0  # soft routing has no such loss
    names = [n for n in want if n.startswith(("metrics/", "grad_", "combined_f32", "paths"))]
    assert len(names) == 19
    recorded.check({n: relative_error(got[n], want[n]) for n in names}, TOLERANCE, record_property)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: f"case{c['case']}")
def test_recorded_in_bf16(case, record_property):
    want, width = arrays_of(case, ARRAYS), ARRAYS["data"].shape[-1]
    params = {
        "router": {"mu": want["mu"], "scale": want["scale"]},
        "expert": with_labels(EXPERTS, jnp.bfloat16),
    }
    data = jnp.asarray(ARRAYS["data"], jnp.bfloat16)
    y, _ = layer_for(case)(params, data, inputs=ARRAYS["inputs"], noise=want.get("noise_unit"))
    combined, _ = split_columns(y.astype(jnp.float32), width)
    assert y.dtype == jnp.bfloat16
    error = relative_error(combined, want["combined_bf16"])
    recorded.check({"combined_bf16": error}, BF16_TOLERANCE, record_property)


@pytest.mark.parametrize("case", CASES[::2], ids=lambda c: f"case{c['case']}")
def test_recorded_slots_from_a_capacity_factor(case):
    if (factor := case["capacity_factor"]) is not None:
        tokens = ARRAYS["data"].shape[1]
        slots = mg.compute_capacity(tokens, EXPERTS, factor, rounding="round", multiple_of=1)
        assert slots == case["slots"]
    assert arrays_of(case, ARRAYS)["mu"].shape[-1] == case["slots"]


# ---- what it promises beyond the recorded runs

G, S, D, E, C = 2, 6, 5, 3, 2


def small(form="auto", **settings):
    layer = mg.compile(soft.bind(**settings), mlp, mg.Schedule(format=form))
    x = jax.random.normal(jax.random.key(0), (G, S, D))
    return layer, layer.init(jax.random.key(1), x, experts=E, hidden=4, C=C), x


def test_parameters_start_as_declared():
    layer = mg.compile(soft, mlp)
    x = jax.ShapeDtypeStruct((1, S, 64), jnp.float32)
    router = layer.init(jax.random.key(1), x, experts=8, hidden=4, C=16)["router"]
    assert router["scale"] == 1.0
    assert router["mu"].shape == (64, 8, 16)
    # LeCun normal as jax.nn.initializers has it for three dims: 64 * 8 inputs.
    np.testing.assert_allclose(router["mu"].std(), (64 * 8) ** -0.5, rtol=0.05)


def test_padding_is_routed_as_if_it_were_not_there():
    layer, params, x = small()
    alone, _ = layer(params, x)
    padded = jnp.concatenate([x[:, :2], 100.0 * jnp.ones((G, 3, D)), x[:, 2:]], axis=1)
    real = np.r_[0:2, 5:9]
    mask = jnp.zeros((G, 9), bool).at[:, real].set(True)
    y, _ = layer(params, padded, mask=mask)
    np.testing.assert_allclose(y[:, real], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[:, 2:5], 0.0)


def test_length_of_tokens_and_slots_does_not_matter():
    layer, params, x = small()
    _, report = layer(params, x)
    longer = {**params, "router": {**params["router"], "mu": 7.0 * params["router"]["mu"]}}
    _, same = layer(longer, 3.0 * x)
    for name, value in report.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, err_msg=name)


def test_similarities_are_reported_on_demand():
    layer, params, x = small()
    assert not any("similarity" in name for name in layer(params, x)[1])


def test_similarities_by_hand():
    """One slot that all tokens share alike: tokens are all alike, there are no two slots."""
    layer = mg.compile(soft.bind(similarities=True), mlp, mg.Schedule(format="onehot"))
    x = jnp.ones((1, 3, 2))
    params = layer.init(jax.random.key(0), x, experts=1, hidden=2, C=1)
    _, report = layer(params, x)
    for kind in ("min", "max", "mean"):
        np.testing.assert_allclose(report[f"combine_weights_similarity_{kind}"], 1.0, rtol=1e-6)
        assert f"dispatch_weights_similarity_{kind}" not in report


def test_noise_comes_from_the_key_and_is_not_divided_by_experts():
    layer, params, x = small(noise_std=2.0)
    draw = jax.random.normal(jax.random.key(4), (G, S, E, C))
    quiet, _ = layer(params, x)
    assert np.abs(layer(params, x, key=jax.random.key(3))[0] - quiet).max() > 1e-3
    params["router"]["scale"] = jnp.zeros(())  # then the logits are the noise
    layer = mg.compile(soft.bind(noise_std=2.0), labelled_width, mg.Schedule(format="onehot"))
    given = {"router": params["router"], "expert": with_labels(E)}
    y, _ = layer(given, x, noise=draw)
    combine = jax.nn.softmax(2.0 * draw, axis=(2, 3))
    dispatch = jax.nn.softmax(2.0 * draw, axis=1)
    expected = jnp.einsum("gsec,gtec,gtd->gsde", combine, dispatch, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@mg.expert
def labelled_width(x: mg.f32["C D"], label: mg.f32["H"]):
    return x * label


@pytest.mark.parametrize("form", ["slots", "sorted"])
def test_other_formats_are_refused_with_the_fix(form):
    layer, params, x = small(form)
    with pytest.raises(LoweringError, match="every token is in every slot") as info:
        layer.lower(params, x)
    assert 'Schedule(format="onehot")' in str(info.value)


def test_auto_takes_the_one_format_that_holds_it():
    layer, params, x = small()
    assert layer.lower(params, x).choice.format == "onehot"


def test_unknown_slots_and_settings_are_refused():
    layer, _, x = small()
    with pytest.raises(ShapeError, match="the size of C is not known for mu"):
        layer.init(jax.random.key(0), x, experts=E, hidden=4)
    with pytest.raises(TraceError, match="soft has no setting capacity_factor"):
        soft.bind(capacity_factor=1.0)
