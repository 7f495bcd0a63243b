"""bench/compare.py: rivals compute the layer that is measured; what is missing is left out."""

import json

import jax
import numpy as np
import pytest

from bench import compare, rivals, torch_rivals
from bench.__main__ import main
from bench.layer import layer_of, output_of
from bench.report import Row
from bench.workloads import Cell, Workload, inputs

CELL = Cell("tiny", Workload(tokens=12, width=4, hidden=8, experts=3, k=2))


@pytest.fixture(scope="module")
def layer():
    """Parameters, tokens, and what the layer makes of them."""
    params, x = inputs(CELL)
    return params, x, output_of(layer_of(CELL, "slots"))(params, x)


def test_rivals_in_jax_compute_the_layer(layer):
    params, x, want = layer
    assert np.abs(want).max() > 0.01
    np.testing.assert_allclose(rivals.onehot(params, x, 2, capacity=8), want, atol=2e-6)
    found = rivals.ragged(params, x, 2, jax.lax.ragged_dot)
    np.testing.assert_allclose(found, want, atol=2e-6)


def test_onehot_drops_what_is_over_the_capacity(layer):
    params, x, want = layer
    assert compare.dropped(CELL, params, x, capacity=8) == 0
    assert compare.dropped(CELL, params, x, capacity=6) == pytest.approx(0.25)
    assert np.abs(rivals.onehot(params, x, 2, capacity=6) - want).max() > 0.01


@pytest.mark.parametrize("name", torch_rivals.LAYERS)
def test_rivals_in_pytorch_compute_the_layer(name, layer):
    pytest.importorskip("torch", reason="PyTorch is an optional extra: moegen[compare]")
    params, x, want = layer
    found = torch_rivals.call(name, params, x, 2, training=False)()
    np.testing.assert_allclose(found.numpy(), want[0], atol=2e-6)
    gradients = torch_rivals.call(name, params, x, 2, training=True)()
    assert [tuple(g.shape) for g in gradients][-1] == x.shape[1:]


def test_what_is_not_installed_is_left_out_with_its_reason(capsys, monkeypatch):
    def missing():
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(torch_rivals, "load", missing)
    assert compare.available(("onehot", "torch_loop")) == ("onehot",)
    assert "torch_loop left out: No module named 'torch'" in capsys.readouterr().err


def test_verdict_names_where_another_is_faster():
    auto, slow = (Row(n, 1.0, r, r, r, 0.0, None) for n, r in (("auto", 1.0), ("onehot", 2.0)))
    fast = Row("ragged_dot", 0.9, 0.9, 0.9, 0.9, 0.0, None)
    told = compare.verdict({"A": [auto, slow], "B": [auto, slow, fast]})
    assert told.splitlines() == [
        "auto is the fastest in 1 of 2 cells", "  faster: B ragged_dot 0.90",
    ]  # fmt: skip
    ours = Row("sorted", 0.5, 0.5, 0.5, 0.5, 0.0, None)
    told = compare.verdict({"A": [auto, slow], "B": [auto, slow, fast, ours]})
    assert told.splitlines()[2:] == ["sorted is the fastest in 1 of 1 cells"]


def test_quick_run_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "QUICK", CELL.workload)
    path = tmp_path / "compare.json"
    flags = ["--quick", "--rivals=onehot,ragged_dot", "--allocator=default", f"--json={path}"]
    assert main(["compare", *flags]) == 0
    assert "auto is the fastest in" in capsys.readouterr().out
    results = json.loads(path.read_text())["results"]
    assert len(results) == 2
    for rows in results.values():
        assert rows[0]["name"] == "auto"
        assert {row["name"] for row in rows[1:]} == {"onehot", "ragged_dot"}
