"""A run-time compute budget: time and accuracy of one compiled program as its budget falls.

`demo` trains the model of `vmoe demo` first and classifies the test images, experts dropless; the
other cells are layers of the `layer` suite. The program is compiled once for all budgets.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moegen
from bench import suite
from bench.layer import Built
from bench.report import Row
from bench.timing import compare
from bench.workloads import QUICK, WORKLOADS, Cell, Workload, inputs
from moegen.experts import mlp
from moegen.routers import noisy_top_k
from vmoe import model
from vmoe.config import TrainConfig
from vmoe.configs import demo
from vmoe.model_config import ModelConfig
from vmoe.train import train

BUDGETS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)
"""Shares of the tokens that the experts may serve; the first is the yardstick."""
CELLS = ("demo", *WORKLOADS)


@dataclass(frozen=True)
class BudgetRow(Row):
    """A line of this suite; accuracy is None for a layer, which has nothing to be right about."""

    accuracy: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    suite.add_arguments(parser, quick="one small layer: not a result")
    parser.add_argument(
        "--cells", type=partial(suite.chosen, "cells", CELLS), default=("demo", "A", "D"),
        metavar="NAME,...", help=f"some of {', '.join(CELLS)} (default: demo,A,D)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, default=None, help="training steps of the demo (default: its own)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure the cells, one table each; returns the exit code."""
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps={arguments.steps}: fix: 1 or more")
    names = ("quick",) if arguments.quick else arguments.cells
    todo: dict[str, suite.Measure] = {}
    for name in names:
        if name == "demo":
            todo[name] = partial(measure_demo, arguments.steps)
        else:
            todo[name] = partial(measure_layer, QUICK if name == "quick" else WORKLOADS[name])
    return suite.run("budget", arguments, todo)


def measure_layer(load: Workload, rounds: int) -> list[Row]:
    """A dropless layer's forward by budget; ratios to the whole budget."""
    params, x = inputs(Cell("layer", load, routing="zipf"))
    router = noisy_top_k.bind(k=load.k, noise_std=0.0, dropless=True)
    layer = moegen.compile(router, mlp)

    def forward(params: Any, x: jax.Array, budget: jax.Array) -> jax.Array:
        return layer(params, x, budget=jnp.broadcast_to(budget, x.shape[:2]))[0]

    built = Built(forward, params, x, jnp.float32(1.0))
    return rows_of(built, lambda budget: built.compiled(params, x, budget), rounds)


def measure_demo(steps: int | None, rounds: int) -> list[Row]:
    """The demo's test images by budget, after training it."""
    config = demo.get_config()
    if steps is not None:
        config = replace(config, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(replace(config, workdir=f"{folder}/demo"), sys.stderr)
    if outcome.stopped_by is not None:
        raise KeyboardInterrupt
    params, test = outcome.state.params, outcome.test
    images = jnp.asarray(test.images)
    classify = classifier(config)
    built = Built(classify, params, images, jnp.float32(1.0))

    def accuracy(budget: jax.Array) -> float:
        return float(np.mean(np.asarray(built.compiled(params, images, budget)) == test.labels))

    return rows_of(built, lambda budget: built.compiled(params, images, budget), rounds, accuracy)


def classifier(config: TrainConfig) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """From parameters, images and a budget f32[] to class numbers i32[B]; experts are dropless."""
    sparse = dropless(config.model)

    def classify(params: Any, images: jax.Array, budget: jax.Array) -> jax.Array:
        logits, _ = model.apply(sparse, params, images, moe_inputs=budgets(sparse, images, budget))
        return jnp.argmax(logits, -1)

    return classify


def dropless(config: ModelConfig) -> ModelConfig:
    """The same weights without any capacity in evaluation."""
    assert config.moe is not None
    router = replace(config.moe.router, dropless=True)
    return replace(config, moe=replace(config.moe, router=router))


def budgets(
    config: ModelConfig, images: jax.Array, budget: jax.Array
) -> list[Mapping[str, jax.Array]]:
    """One budget for all tokens, as each MoE block takes it: f32[G, S]."""
    assert config.moe is not None
    rows, columns = (size // config.patch_size for size in images.shape[1:3])
    tokens = (rows * columns + (config.head == "token")) * config.moe.group_images
    groups = len(images) // config.moe.group_images
    per_token = jnp.broadcast_to(budget, (groups, tokens))
    return [{"budget": per_token} for _ in config.moe.layers]


def rows_of(
    built: Built,
    call: Callable[[jax.Array], Any],
    rounds: int,
    accuracy: Callable[[jax.Array], float] | None = None,
) -> list[Row]:
    """Times one program with each budget, interleaved; the whole budget is the yardstick."""
    thunks = {f"budget {b:g}": partial(call, jnp.float32(b)) for b in BUDGETS}
    first, *others = thunks
    timings = compare(thunks[first], {name: thunks[name] for name in others}, rounds, first)
    rows: list[Row] = []
    for timing, budget in zip(timings, BUDGETS, strict=True):
        row = built.row(timing)
        right = None if accuracy is None else accuracy(jnp.float32(budget))
        note = "" if right is None else f"accuracy {right:.2%}"
        rows.append(BudgetRow(**{**vars(row), "note": note}, accuracy=right))
    return rows
