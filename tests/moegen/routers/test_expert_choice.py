"""Expert choice: recorded cases in every format that holds it, padding, and refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError, ShapeError, TraceError
from moegen.experts import mlp
from moegen.routers import expert_choice
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
CASES, ARRAYS = recorded.load("router_expert_choice")
EXPERTS = ARRAYS["kernel"].shape[1]
FORMATS = ("onehot", "slots")
every_format = pytest.mark.parametrize("form", FORMATS)


@recorded.pairs(CASES, {"slots": 1, "onehot": 4})
def test_recorded(case, form, record_property):
    want = arrays_of(case, ARRAYS)
    assert ("noise_unit" in want) == case["noisy"]
    width = ARRAYS["data"].shape[-1]

    @mg.router
    def by_inputs(
        x: mg.f32["S W"], inputs: mg.f32["S D"], w: mg.f32["D E"], noise: mg.f32["S E"] = None
    ):
        return expert_choice(inputs, w, None, noise, **case["settings"])

    layer = mg.compile(by_inputs, labelled, mg.Schedule(format=form))

    def loss(w, inputs, data):
        params = {"router": {"w": w}, "expert": with_labels(EXPERTS)}
        y, aux = layer(
            params, with_one_hot_tokens(data), inputs=inputs, noise=want.get("noise_unit")
        )
        combined, paths = split_columns(y, width)
        return (combined * ARRAYS["cotangent"]).sum(), (combined, paths, aux)

    given = (ARRAYS["kernel"], ARRAYS["inputs"], ARRAYS["data"])
    (_, (combined, paths, aux)), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*given)
    got = {f"metrics/{n}": v for n, v in aux.items()} | {"combined": combined, "paths": paths}
    got |= dict(zip(("grad_kernel", "grad_inputs", "grad_data"), grads, strict=True))
    want["paths"] = token_to_token(want["combine_weights"], want["dispatch_weights"])
    np.testing.assert_array_equal(np.asarray(paths) > 0, want["paths"] > 0)
    assert want.pop("metrics/auxiliary_loss") == 0  # expert choice has no such loss
    names = [n for n in want if n.startswith(("metrics/", "grad_", "combined", "paths"))]
    assert len(names) == 13
    recorded.check({n: relative_error(got[n], want[n]) for n in names}, TOLERANCE, record_property)
    np.testing.assert_array_equal(aux["load"], want["combine_weights"].shape[-1])


# ---- what it promises beyond the recorded runs

G, S, D, E = 2, 12, 6, 4


def small(form="slots", **settings):
    layer = mg.compile(expert_choice.bind(**settings), mlp, mg.Schedule(format=form))
    x = jax.random.normal(jax.random.key(0), (G, S, D))
    return layer, layer.init(jax.random.key(1), x, experts=E, hidden=5), x


@every_format
def test_padding_is_routed_as_if_it_were_not_there(form):
    layer, params, x = small(form, capacity=3)
    alone, report = layer(params, x)
    rubbish = 100.0 * jnp.ones((G, 5, D))
    padded = jnp.concatenate([x[:, :7], rubbish, x[:, 7:]], axis=1)
    real = np.r_[0:7, 12:17]
    mask = jnp.zeros((G, 17), bool).at[:, real].set(True)
    y, masked_report = layer(params, padded, mask=mask)
    np.testing.assert_allclose(y[:, real], alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[:, 7:12], 0.0)
    for name, value in report.items():
        np.testing.assert_allclose(masked_report[name], value, rtol=1e-6, err_msg=name)


@every_format
def test_slots_left_over_by_padding_carry_nothing(form):
    layer, params, x = small(form, capacity=3)
    mask = jnp.zeros((G, S), bool).at[:, 4].set(True)
    y, report = layer(params, x, mask=mask)
    np.testing.assert_array_equal(report["load"], np.ones((G, E)))
    np.testing.assert_array_equal(report["dropped"], 0.0)
    np.testing.assert_array_equal(report["num_experts_per_item_min"], E)
    np.testing.assert_array_equal(np.flatnonzero(np.abs(y[0]).sum(-1)), [4])


def test_counts_by_hand():
    """Two experts prefer token 2 and token 0; nobody takes token 1."""
    layer = mg.compile(expert_choice.bind(capacity=1), mlp, mg.Schedule(format="slots"))
    x = jnp.asarray([[[-3.0, 0.0], [0.0, 0.0], [3.0, 0.0]]])
    params = layer.init(jax.random.key(0), x, experts=2, hidden=3)
    params["router"]["w"] = jnp.asarray([[1.0, -1.0], [0.0, 0.0]])
    _, report = layer(params, x)
    gate = 1 / (1 + np.exp(-6.0))
    expected = {
        "load": [[1, 1]], "asked": [3], "dropped": [1 / 3],
        "num_experts_per_item_min": [0], "num_experts_per_item_max": [1],
        "min_selected_gate": [gate], "max_selected_gate": [gate],
        "ratio_processed_items_by_at_least_1_experts": [2 / 3],
        "ratio_processed_items_by_at_least_2_experts": [0],
    }  # fmt: skip
    assert report.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-6, err_msg=name)


def test_ratios_end_at_all_experts():
    layer, _, x = small(capacity=2)
    params = layer.init(jax.random.key(1), x, experts=6, hidden=5)
    names = [n for n in layer(params, x)[1] if n.startswith("ratio")]
    assert [int(re.search(r"\d+", n)[0]) for n in names] == [1, 2, 4, 6]


def test_noise_comes_from_the_key():
    layer, params, x = small(capacity=3, noise_std=4.0)
    quiet, _ = layer(params, x)
    noisy, _ = layer(params, x, key=jax.random.key(3))
    again, _ = layer(params, x, key=jax.random.key(3))
    assert np.abs(noisy - quiet).max() > 1e-3
    np.testing.assert_array_equal(noisy, again)
    layer, params, x = small(capacity=3)
    np.testing.assert_array_equal(layer(params, x, key=jax.random.key(3))[0], quiet)


def test_more_slots_than_tokens_are_refused():
    layer, params, x = small(capacity_factor=4.2)
    with pytest.raises(ShapeError, match="capacity=16 different tokens, a group has S=12") as info:
        layer(params, x)
    assert "lower the capacity" in str(info.value)


def test_dropless_is_refused_at_once():
    with pytest.raises(TraceError, match="expert_choice has no setting dropless"):
        expert_choice.bind(dropless=True)


def test_sorted_is_refused_with_the_fix():
    layer, params, x = small("sorted", capacity=3)
    with pytest.raises(LoweringError, match="expert choice fills every slot") as info:
        layer.lower(params, x)
    assert 'Schedule(format="slots")' in str(info.value)
