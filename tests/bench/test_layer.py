"""bench/layer.py: the formats compute one function; the dense baseline is the same MLP."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bench import layer
from bench.__main__ import main

TINY = layer.Case(groups=2, tokens=8, experts=2, k=1, width=4, hidden=8)


def test_formats_compute_the_same_function() -> None:
    params, x = layer.inputs(TINY)
    first, *others = (layer.sparse(TINY, name)(params, x) for name in layer.FORMATS)
    assert np.abs(first).max() > 0
    for other in others:
        np.testing.assert_allclose(other, first, atol=2e-6)


def test_with_one_expert_the_layer_is_the_dense_mlp() -> None:
    case = layer.Case(groups=1, tokens=8, experts=1, k=1, width=4, hidden=8)
    params, x = layer.inputs(case)
    expected = layer.dense(layer.first_expert(params), x)  # the only gate is 1
    np.testing.assert_allclose(layer.sparse(case, "slots")(params, x), expected, atol=2e-6)


def test_training_gives_gradients_of_parameters_and_input() -> None:
    params, x = layer.inputs(TINY)
    for_params, for_x = layer.training(layer.sparse(TINY, "slots"))(params, x)
    assert jax.tree.structure(for_params) == jax.tree.structure(params)
    assert for_x.shape == x.shape
    assert jnp.abs(for_x).max() > 0


def test_quick_run_prints_and_writes(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(layer, "QUICK", TINY)
    path = tmp_path / "layer.json"
    assert main(["layer", "--quick", "--rounds=3", f"--json={path}"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("forward", "training", "dense", *layer.FORMATS))
    assert set(json.loads(path.read_text())["results"]) == {"forward", "training"}
