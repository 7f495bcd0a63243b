"""bench/layer.py: schedules compute one function; what is printed and written."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bench import layer
from bench.__main__ import main
from bench.report import Row
from bench.workloads import Cell, Workload, inputs
from bench.yardsticks import dense, dense_inputs

TINY = Workload(tokens=8, width=4, hidden=8, experts=2, k=1)
CELL = Cell("tiny", TINY)


def test_schedules_compute_the_same_function() -> None:
    params, x = inputs(CELL)
    first, *others = (
        layer.output_of(layer.layer_of(CELL, name))(params, x)
        for name in layer.SCHEDULES
        if layer.can_run(name)
    )
    assert np.abs(first).max() > 0
    for other in others:
        np.testing.assert_allclose(other, first, atol=2e-6)


def test_with_one_expert_the_layer_is_the_dense_mlp() -> None:
    cell = Cell("one", replace(TINY, experts=1))
    params, x = inputs(cell)
    expected, _ = dense(*dense_inputs("dense", params, x, 1))  # the only gate is 1
    found = layer.output_of(layer.layer_of(cell, "slots"))(params, x)
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_training_gives_gradients_of_parameters_and_input() -> None:
    params, x = inputs(CELL)
    function = layer.training(layer.output_of(layer.layer_of(CELL, "slots")))
    for_params, for_x = function(params, x)
    assert jax.tree.structure(for_params) == jax.tree.structure(params)
    assert for_x.shape == x.shape
    assert jnp.abs(for_x).max() > 0


def test_what_does_not_fit_is_left_out_with_its_size(capsys) -> None:
    big = Cell("E", Workload(6272, 192, 768, 16, 2))
    assert not layer.fits(big, "onehot")
    assert "onehot left out: it needs 5.0 GB" in capsys.readouterr().err
    assert layer.fits(replace(big, capacity="1.05"), "slots")
    assert layer.fits(big, "sorted")


def test_quick_run_prints_and_writes(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(layer, "QUICK", TINY)
    path = tmp_path / "layer.json"
    flags = ["--quick", "--rounds=3", "--schedules=auto,slots", "--allocator=default"]
    assert main(["layer", *flags, f"--json={path}"]) == 0
    printed = capsys.readouterr()
    assert all(name in printed.out for name in ("forward", "training", "floor", "auto", "slots"))
    assert "[4/4]" in printed.err
    assert "training: auto within 10 % of the best in" in printed.out
    content = json.loads(path.read_text())
    assert len(content["results"]) == 4
    assert content["settings"] == {"rounds": 3, "allocator": "default"}
    for rows in content["results"].values():
        assert rows[0]["ratio"] == 1
        assert {row["name"]: row["note"] for row in rows}["auto"] in layer.SCHEDULES


def test_a_program_is_compiled_once_for_both_routings() -> None:
    made, calls = layer.Programs(), []

    def double(x):
        calls.append(x)
        return x * 2

    first, second = (
        made.build(replace(CELL, routing=routing), "auto", double, jnp.float32(value))
        for routing, value in (("balanced", 1.0), ("zipf", 2.0))
    )
    assert (float(first.run()), float(second.run())) == (2.0, 4.0)
    assert len(calls) == 1
    made.build(replace(CELL, capacity="1.05"), "auto", partial(double), jnp.float32(3.0))
    assert len(calls) == 2


def test_verdict_compares_auto_with_the_best_format_measured() -> None:
    def rows(**ratios: float) -> list[Row]:
        return [Row(name, r, r, r, r, 0.0, None) for name, r in ratios.items()]

    told = layer.verdict(
        {
            "A/forward": rows(dense=1.0, floor=1.1, auto=1.5, sorted=1.2),
            "B/forward": rows(dense=1.0, floor=1.1, auto=1.2, slots=1.15),
            "A/training": rows(dense=1.0, floor=1.1, slots=1.15),
        }
    )
    assert told.splitlines() == [
        "forward: auto within 10 % of the best in 1 of 2 cells",
        "  A/forward: 25% behind",
        "training: auto within 10 % of the best in 0 of 0 cells",
    ]
