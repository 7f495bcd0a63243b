"""The compiled layer in each format against a dense MLP of equal FLOPs, on five workloads.

The yardstick of a cell is the fastest of three dense MLPs; a ratio of 1 means that routing,
dispatch and combine cost nothing. `floor` is what the experts' products take alone.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import moegen
from bench import suite
from bench.report import Row
from bench.timing import Timing, compare
from bench.workloads import (
    CAPACITIES,
    DIRECTIONS,
    DTYPES,
    QUICK,
    ROUTINGS,
    WORKLOADS,
    Cell,
    cells,
    inputs,
)
from bench.yardsticks import DENSE, dense_inputs, floor, floor_inputs
from moegen.experts import mlp
from moegen.routers import noisy_top_k

SCHEDULES = {
    "auto": moegen.Schedule(),
    "onehot": moegen.Schedule(format="onehot"),
    "slots": moegen.Schedule(format="slots"),
    "sorted": moegen.Schedule(format="sorted"),
    "ragged_dot": moegen.Schedule(format="sorted", kernel="ragged_dot"),
}
MOST_BYTES = 2 << 30
"""What a layer may need for its rows or masks; one that needs more is left out, and says so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    suite.add_arguments(parser, quick="four cells of a small layer: not a result")
    for name, known in (
        ("workloads", tuple(WORKLOADS)),
        ("dtypes", DTYPES),
        ("routings", ROUTINGS),
        ("capacities", CAPACITIES),
        ("directions", DIRECTIONS),
        ("schedules", tuple(SCHEDULES)),
    ):
        parser.add_argument(
            f"--{name}", type=partial(suite.chosen, name, known), default=known,
            metavar="NAME,...", help=f"some of {', '.join(known)} (default: all)",
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure the cells, one table each; returns the exit code."""
    todo = {c.key: partial(measure, c, arguments.schedules) for c in _cells(arguments)}
    return suite.run("layer", arguments, todo)


def _cells(arguments: argparse.Namespace) -> Iterable[Cell]:
    if arguments.quick:
        return cells({"quick": QUICK}, DTYPES[:1], ROUTINGS, CAPACITIES[:1], DIRECTIONS)
    return cells(
        {name: WORKLOADS[name] for name in arguments.workloads}, arguments.dtypes,
        arguments.routings, arguments.capacities, arguments.directions,
    )  # fmt: skip


def measure(cell: Cell, schedules: tuple[str, ...], rounds: int) -> list[Row]:
    """The yardstick, the floor and the layer by schedule, interleaved; ratios to the yardstick."""
    params, x = inputs(cell)
    k = cell.workload.k
    dense = {
        name: build(cell, function, *dense_inputs(name, params, x, k))
        for name, function in DENSE.items()
    }
    first, *others = dense
    tried = compare(dense[first].run, {n: dense[n].run for n in others}, 5, first)
    best = min(tried, key=lambda timing: timing.ratio).name
    made = {"floor": build(cell, floor, *floor_inputs(params, x, k))}
    for name in schedules:
        if fits(cell, name):
            layer = layer_of(cell, name)
            note = layer.lower(params, x).choice.format if name == "auto" else ""
            made[name] = build(cell, output_of(layer), params, x, note=note)
    candidates = {name: item.run for name, item in made.items()}
    timings = compare(dense[best].run, candidates, rounds, best)
    return [{**dense, **made}[timing.name].row(timing) for timing in timings]


class Built:
    """A compiled function of one cell with its arguments, and what compiling it showed."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, note: str = ""):
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        self.temporary_mb = memory.temp_size_in_bytes / 1e6 if memory is not None else None
        self.note = note
        self.compiled = compiled
        self.run = partial(compiled, *arguments)

    def row(self, timing: Timing) -> Row:
        """The line of the table for a timing of this function."""
        return Row(**asdict(timing), compile_seconds=self.compile_seconds,
                   temporary_mb=self.temporary_mb, note=self.note)  # fmt: skip


def build(cell: Cell, function: Callable[..., Any], *arguments: Any, note: str = "") -> Built:
    """The function compiled for the cell's direction."""
    wanted = training(function) if cell.direction == "training" else function
    return Built(wanted, *arguments, note=note)


def training(function: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients, by parameters and input, of the mean squares of the function's outputs."""

    def loss(params: Any, x: Any) -> jax.Array:
        outputs = jax.tree.leaves(function(params, x))
        return sum(
            (jnp.mean(jnp.square(y.astype(jnp.float32))) for y in outputs), start=jnp.zeros(())
        )

    return jax.grad(loss, argnums=(0, 1))


def layer_of(cell: Cell, schedule: str) -> moegen.Layer:
    """The layer of a cell, routing without noise, lowered as the schedule of that name says."""
    dropless = cell.capacity == "dropless"
    place = {"dropless": True} if dropless else {"capacity_factor": float(cell.capacity)}
    router = noisy_top_k.bind(k=cell.workload.k, noise_std=0.0, **place)
    return moegen.compile(router, mlp, schedule=SCHEDULES[schedule])


def output_of(layer: moegen.Layer) -> Callable[..., Any]:
    """The layer as a function of parameters and tokens that gives the tokens only."""
    return lambda params, x: layer(params, x)[0]


def fits(cell: Cell, schedule: str) -> bool:
    """Whether the schedule's rows and masks stay below MOST_BYTES; prints why not."""
    if schedule not in ("onehot", "slots"):
        return True
    load = cell.workload
    slots = load.experts * load.tokens * load.k  # dropless: room for everyone everywhere
    if cell.capacity != "dropless":
        slots = round(load.tokens * load.k * float(cell.capacity))
    needed = 4 * slots * (load.tokens if schedule == "onehot" else load.width + load.hidden)
    if needed <= MOST_BYTES:
        return True
    print(f"  {schedule} left out: it needs {needed / 1e9:.1f} GB", file=sys.stderr)
    return False
