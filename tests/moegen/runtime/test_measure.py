"""moegen.autotune: every format is run, and the store remembers what a time depends on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError, TuneError
from moegen.experts import mlp
from moegen.routers import expert_choice, hash_layer, noisy_top_k, soft
from moegen.runtime import measure

X = jax.random.normal(jax.random.key(0), (1, 8, 4))


def layer_of(router=noisy_top_k, **schedule):
    return mg.compile(router, mlp, mg.Schedule(**schedule))


def params_of(layer, **dims):
    return layer.init(jax.random.key(1), X, experts=2, hidden=4, **dims)


@pytest.fixture
def clock(monkeypatch):
    """Times by decree: what is slower, and how often anything was timed."""
    calls = []

    def times(runs):
        calls.append(list(runs))
        for run in runs.values():
            jax.block_until_ready(run())
        return {name: 1.0 + (name != "slots") for name in runs}

    monkeypatch.setattr(measure, "_times", times)
    return calls


@pytest.mark.parametrize("training", [False, True])
def test_all_formats_run_and_the_fastest_is_taken(training):
    layer = layer_of()
    tuned, found = mg.autotune(layer, params_of(layer), X, training=training)
    assert set(found.milliseconds) == {"onehot", "slots", "sorted"}
    assert found.milliseconds[found.format] == min(found.milliseconds.values()) > 0
    assert tuned.schedule.format == found.format
    assert found.direction == ("training" if training else "forward")
    got, want = tuned(params_of(layer), X)[0], layer(params_of(layer), X)[0]
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_custom_call_is_one_of_them_where_auto_may_take_it(custom_call, clock, monkeypatch):
    monkeypatch.setattr(measure, "_estimate", lambda one: 1.0 + (one.choice.kernel != "native"))
    monkeypatch.setattr(measure, "HOPELESS", 1.5)
    layer = layer_of()
    tuned, found = mg.autotune(layer, params_of(layer), X)
    assert (found.format, set(found.left_out)) == ("native", {"onehot", "slots", "sorted"})
    assert (tuned.schedule.format, tuned.schedule.kernel) == ("sorted", "native")
    assert set(measure._layers(layer_of(target="cpu"))) == {"onehot", "slots", "sorted"}


def test_the_store_remembers_and_what_counts_is_in_the_key(tmp_path, clock):
    path = tmp_path / "store.json"
    layer = layer_of()
    params = params_of(layer)
    first, found = mg.autotune(layer, params, X, store=path)
    again, remembered = mg.autotune(layer_of(), params, 2 * X, store=str(path))
    assert (remembered, again.schedule) == (found, first.schedule)
    assert len(clock) == 1
    changed = [
        lambda: mg.autotune(layer, params, X, store=path, training=False),
        lambda: mg.autotune(layer, params, jnp.concatenate([X, X], 1), store=path),
        lambda: mg.autotune(layer_of(noisy_top_k.bind(k=2)), params, X, store=path),
        lambda: mg.autotune(layer_of(block=2), params, X, store=path),
    ]
    for number, call in enumerate(changed, 2):
        call()
        assert len(clock) == number
    assert len(json.loads(path.read_text())["choices"]) == len(clock)


def test_other_kernels_are_measured_anew(tmp_path, clock, monkeypatch):
    path = tmp_path / "store.json"
    layer = layer_of()
    mg.autotune(layer, params_of(layer), X, store=path)
    source = measure.Lowered.source
    monkeypatch.setattr(measure.Lowered, "source", lambda self: source(self) + "# changed\n")
    mg.autotune(layer, params_of(layer), X, store=path)
    assert len(clock) == 2


def test_a_damaged_store_stops_it_before_measuring(tmp_path, clock):
    path = tmp_path / "store.json"
    path.write_text("{}")
    layer = layer_of()
    with pytest.raises(TuneError, match=r"store\.json"):
        mg.autotune(layer, params_of(layer), X, store=path)
    assert clock == []


def test_formats_that_cannot_hold_it_are_left_out_with_the_reason(clock):
    layer = layer_of(expert_choice)
    tuned, found = mg.autotune(layer, params_of(layer), X)
    assert set(found.milliseconds) == {"onehot", "slots"}
    assert "nothing to save" in found.left_out["sorted"]
    assert tuned.schedule.format == "slots"
    layer = layer_of(soft)
    _, found = mg.autotune(layer, params_of(layer, C=2), X)
    assert set(found.milliseconds) == {"onehot"}


def test_hopeless_formats_are_not_compiled(clock, monkeypatch):
    monkeypatch.setattr(
        measure, "_estimate", lambda one: 1e3 if one.choice.format == "onehot" else 1.0
    )
    layer = layer_of()
    _, found = mg.autotune(layer, params_of(layer), X)
    assert found.left_out == {"onehot": "estimated at 1000 times the best"}


def test_a_layer_that_no_format_holds_is_refused(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise LoweringError("cannot")

    layer = layer_of()
    params = params_of(layer)
    monkeypatch.setattr(mg.Layer, "lower", refuse)
    with pytest.raises(LoweringError, match="no format can hold it: cannot; cannot; cannot"):
        mg.autotune(layer, params, X)


def test_whole_number_inputs_and_keys_are_passed_on(clock):
    layer = layer_of(hash_layer)
    inputs = {"ids": jnp.arange(8)[None]}
    _, found = mg.autotune(layer, params_of(layer), X, inputs=inputs)
    assert found.milliseconds
    layer = layer_of()
    _, found = mg.autotune(layer, params_of(layer), X, key=jax.random.key(2))
    assert found.milliseconds
