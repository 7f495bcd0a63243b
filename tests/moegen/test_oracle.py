"""Interpreter, every format and the float64 oracle compute one layer; the oracle is checked too."""

import jax
import numpy as np
import pytest
from hypothesis import given

from moegen.ir.interpret import interpret
from tests import oracle
from tests.moegen.layer_cases import CORNERS, FORMATS, WEIGHTS, Case, cases, priorities_are_clear

RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""float32 against float64; losses are differences, so small ones have an absolute error."""


def expected(case: Case) -> dict[str, np.ndarray]:
    settings = oracle.Settings(
        case.k,
        case.capacity,
        noise_std=case.noise_std,
        batch_priority=case.batch_priority,
        **WEIGHTS,
    )
    wide = {n: a.astype(np.float64) for n, a in case.expert.items()}
    experts = [tuple(wide[n][e] for n in ("w1", "b1", "w2", "b2")) for e in range(case.num_experts)]
    noise = None if case.noise is None else case.noise.astype(np.float64)
    x, w = case.x.astype(np.float64), case.w.astype(np.float64)
    return oracle.moe_layer(settings, w, experts, x, noise, case.mask)


def interpreted(case: Case) -> dict[str, jax.Array]:
    """The program as traced: routes are one value, no format is chosen."""
    traced = case.layer("slots").trace(case.params, case.x, inputs=case.inputs)
    outputs, _ = interpret(traced.program, *case.arrays(traced.layer.slots))
    return outputs


def check(got: dict[str, jax.Array], want: dict[str, np.ndarray]) -> None:
    assert set(got) == set(want) - {"gates"}
    np.testing.assert_array_equal(got["load"], want["load"])
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], RELATIVE, ABSOLUTE, err_msg=name)


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name):
    case = CORNERS[name]
    assert priorities_are_clear(case)
    want = expected(case)
    check(interpreted(case), want)
    for form in FORMATS:
        check(case.run(form), want)


@given(case=cases())
def test_random_layers(case):
    want = expected(case)
    check(interpreted(case), want)
    for form in FORMATS:
        check(case.run(form), want)


# ---- the corners are what their names say


def test_corners_meet_what_they_are_for():
    wants = {name: expected(case) for name, case in CORNERS.items()}
    assert wants["capacity_overflow_by_priority"]["dropped"].min() > 0
    no_slot = wants["tokens_without_any_slot"]
    assert (no_slot["y"] == 0).all(-1).any(-1).all()
    assert (no_slot["y"] != 0).any()
    for name in ("tokens_without_any_slot", "empty_experts_dropless"):
        assert (wants[name]["load"].sum(0) == 0).any()
    for name, case in CORNERS.items():
        if case.capacity is None and case.mask is None:
            assert (wants[name]["dropped"] == 0).all()
    assert (wants["padding_only"]["y"] == 0).all()
    gates = wants["all_tied"]["gates"]
    assert (gates == gates[0, 0, 0]).all()
    assert (wants["padding"]["y"][~CORNERS["padding"].mask] == 0).all()


def test_priority_changes_who_is_served():
    """Otherwise the corners with priority would say nothing about it."""
    case = CORNERS["capacity_overflow_by_priority"]
    plain = Case(**{**vars(case), "batch_priority": False})
    assert not np.allclose(expected(case)["y"], expected(plain)["y"])


# ---- the oracle itself, by hand


def test_softmax_and_top_k():
    np.testing.assert_allclose(oracle.softmax(np.log([1.0, 2.0, 5.0])), [0.125, 0.25, 0.625])
    assert oracle.top_k(np.array([1.0, 3.0, 3.0, 2.0]), 3) == [1, 2, 3]
    assert oracle.top_k(np.zeros(4), 2) == [0, 1]


def test_queues_are_choice_major_and_know_no_capacity():
    chosen = [[0, 1], [0, 2], [1, 0]]
    everyone = [True, True, True]
    assert oracle.queue_places(chosen, [0, 1, 2], 3, everyone) == [[0, 1], [1, 0], [0, 2]]
    assert oracle.queue_places(chosen, [2, 1, 0], 3, everyone) == [[1, 1], [0, 0], [0, 2]]
    padded = oracle.queue_places(chosen, [0, 1, 2], 3, [False, True, True])
    assert padded == [[-1, -1], [0, 0], [0, 1]]


def test_service_by_priority_is_stable():
    gates = [0.5, 0.9, 0.5, 0.9]
    assert oracle.serving_order(gates, batch_priority=True) == [1, 3, 0, 2]
    assert oracle.serving_order(gates, batch_priority=False) == [0, 1, 2, 3]


def test_losses_by_hand():
    assert oracle.squared_variation([1.0, 3.0]) == 0.25
    assert oracle.squared_variation([2.0, 2.0]) == 0.0
    even = np.zeros((3, 4))
    assert oracle.importance_loss(even) == 0.0
    assert oracle.load_loss(even, even, 1.0, 2) == 0.0
    # All first choices go to expert 0, mean gates are 1/4: 16 * mean(1 * 1/4, 0, 0, 0).
    assert oracle.gshard_loss(np.full((3, 4), 0.25)) == 1.0


def test_capacity_by_hand():
    assert oracle.capacity(80, 8, 1.05, "ceil", 4) == 12
    assert oracle.capacity(80, 8, 1.05, "ceil", 1) == 11
    assert oracle.capacity(10, 4, 1.0, "round", 0) == 2  # 2.5: halves go to even
    with pytest.raises(ValueError, match="no slot"):
        oracle.capacity(1, 8, 0.25, "round", 4)


def test_gelu_is_the_activation_of_the_paper():
    for x in (-3.0, -0.5, 0.0, 0.7, 4.0):
        assert oracle.gelu(x) == pytest.approx(float(jax.nn.gelu(x)), rel=1e-5, abs=1e-6)


def test_one_token_by_hand():
    """One expert of two, gate 3/4, adding its bias: y is 3/4 of the bias."""
    settings = oracle.Settings(k=1, capacity=1)
    router = np.array([[0.0, np.log(3.0)]])
    nothing = (np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1)))
    experts = [(*nothing, np.array([5.0])), (*nothing, np.array([8.0]))]
    got = oracle.moe_layer(settings, router, experts, np.ones((1, 2, 1)))
    np.testing.assert_allclose(got["y"], [[[6.0], [0.0]]])
    np.testing.assert_array_equal(got["load"], [[0, 1]])
    np.testing.assert_allclose(got["dropped"], [0.5])
