"""Calls without gradients have a format of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen
from moegen.errors import LoweringError
from moegen.experts import mlp
from moegen.routers import noisy_top_k
from moegen.runtime import stages
from moegen.tune.formats import pick_format

X = jax.random.normal(jax.random.key(1), (2, 12, 8))


def layer(**schedule):
    router = noisy_top_k.bind(k=2, noise_std=0.0, capacity_factor=1.5)
    return moegen.compile(router, mlp, schedule=moegen.Schedule(target="cpu", **schedule))


@pytest.fixture
def params():
    return layer().init(jax.random.key(0), X, experts=4, hidden=16)


@pytest.fixture
def two_formats(monkeypatch):
    """As if sorted rows were the fastest without a backward, and slots with one."""

    def pick(program, format, *rest):
        best = "slots" if program.cotangents else "sorted"
        return pick_format(program, best if format == "auto" else format, *rest)

    monkeypatch.setattr(stages, "pick_format", pick)


def grouped(program):
    return any(op.name == "grouped_dot" for op in program.ops)


def test_each_direction_runs_in_its_own_format(params, two_formats):
    lowered = layer().lower(params, X)
    assert (lowered.choice.format, lowered.inference_choice.format) == ("slots", "sorted")
    parts = lowered.parts
    found = [grouped(p) for p in (parts.primal, parts.forward, parts.backward)]
    assert found == [True, False, False]
    assert "format slots (sorted in inference), target cpu" in lowered.source()


def test_both_formats_give_the_same_outputs_and_the_gradients_of_slots(params, two_formats):
    both, slots = layer(), layer(format="slots")

    def loss(params, layer):
        y, aux = layer(params, X)
        return jnp.mean(y**2) + jnp.sum(aux["auxiliary_loss"])

    np.testing.assert_allclose(both(params, X)[0], slots(params, X)[0], rtol=1e-5, atol=1e-6)
    values, gradients = zip(
        *(jax.value_and_grad(loss)(params, one) for one in (both, slots)), strict=True
    )
    assert values[0] == values[1]
    jax.tree.map(np.testing.assert_array_equal, *gradients)


def test_print_shows_both(params, two_formats):
    lowered = layer().lower(params, X)
    text = lowered.as_text("inference")
    assert "grouped_dot" in text
    assert " grad " not in text
    page = lowered.explain()
    assert "// inference, after all passes\n" + text in page
    assert "// formats on cpu, inference alone\n" in page
    with pytest.raises(LoweringError, match='did you mean "inference"'):
        lowered.as_text("inferense")


def test_one_format_for_both_is_lowered_once(params, two_formats):
    lowered = layer(format="slots").lower(params, X)
    assert lowered.inference is None
    assert lowered.inference_choice is lowered.choice
    assert not grouped(lowered.parts.primal)
    assert "inference" not in lowered.explain()


def test_the_estimates_of_inference_are_of_the_forward_alone(params):
    lowered = layer().lower(params, X)
    alone, joint = (
        {c.format: c.cost.flops for c in choice.candidates if c.cost}
        for choice in (lowered.inference_choice, lowered.choice)
    )
    assert all(alone[form] < 0.6 * joint[form] for form in alone)
