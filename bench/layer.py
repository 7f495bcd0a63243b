"""The compiled layer in each format against a dense MLP of equal FLOPs, on five workloads.

The yardstick of a cell is the fastest of three dense MLPs; a ratio of 1 means that routing,
dispatch and combine cost nothing. `floor` is what the experts' products take alone. At the end it
says in how many cells the format that `auto` took was the fastest, or within 10 % of it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import moegen
from bench import suite
from bench.cells_table import markdown
from bench.report import Row, check_folder
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
from moegen.kernels.grouped_dot import native
from moegen.routers import noisy_top_k
from moegen.tune.formats import FormatChoice
from moegen.tune.whole import write_text

SCHEDULES = {
    "auto": moegen.Schedule(),
    "onehot": moegen.Schedule(format="onehot"),
    "slots": moegen.Schedule(format="slots"),
    "sorted": moegen.Schedule(format="sorted", kernel="runs"),
    "native": moegen.Schedule(format="sorted", kernel="native"),
    "ragged_dot": moegen.Schedule(format="sorted", kernel="ragged_dot"),
}
MOST_BYTES = 2 << 30
"""What a layer may need for its rows or masks; one that needs more is left out, and says so."""

HOPELESS = 3.0
"""A format whose estimate is this many times the best one's is left out, and the run says so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    suite.add_arguments(parser, quick="four cells of a small layer: not a result")
    suite.add_lists(
        parser,
        workloads=tuple(WORKLOADS),
        dtypes=DTYPES,
        routings=ROUTINGS,
        capacities=CAPACITIES,
        directions=DIRECTIONS,
        schedules=tuple(SCHEDULES),
    )
    parser.add_argument(
        "--markdown", type=Path, default=None, help="also write floor and auto as one table here"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure the cells, one table each; returns the exit code."""
    check_folder("markdown", arguments.markdown)
    made = Programs()
    done: dict[str, list[Row]] = {}

    def one(cell: Cell, rounds: int) -> list[Row]:
        done[cell.key] = measure(cell, arguments.schedules, rounds, made)
        return done[cell.key]

    code = suite.run("layer", arguments, {c.key: partial(one, c) for c in _cells(arguments)})
    print(verdict(done))
    if arguments.markdown is not None:
        write_text(arguments.markdown, markdown(done))
        print(f"wrote {arguments.markdown}")
    return code


def _cells(arguments: argparse.Namespace) -> Iterable[Cell]:
    if arguments.quick:
        return cells({"quick": QUICK}, DTYPES[:1], ROUTINGS, CAPACITIES[:1], DIRECTIONS)
    return cells(
        {name: WORKLOADS[name] for name in arguments.workloads}, arguments.dtypes,
        arguments.routings, arguments.capacities, arguments.directions,
    )  # fmt: skip


def measure(
    cell: Cell, schedules: tuple[str, ...], rounds: int, made: "Programs | None" = None
) -> list[Row]:
    """The yardstick, the floor and the layer by schedule, interleaved; ratios to the yardstick.

    What `auto` took is not measured again by its own name, and a format is left out whose estimate
    is HOPELESS times the best one's.
    """
    made = Programs() if made is None else made
    params, x = inputs(cell)
    best = made.fastest_dense(cell, params, x)
    k = cell.workload.k
    runs = {"floor": made.build(cell, "floor", floor, *floor_inputs(params, x, k))}
    choice = choice_of(cell, params, x)
    costs = {c.name: c.cost.seconds for c in choice.candidates if c.cost is not None}
    for name in schedules:
        if name == choice.name and "auto" in schedules:
            continue
        if costs.get(name, 0.0) > HOPELESS * costs[choice.name]:
            times = costs[name] / costs[choice.name]
            print(f"  {name} left out: estimated at {times:.0f} times the best", file=sys.stderr)
        elif can_run(name) and fits(cell, name):
            layer = output_of(layer_of(cell, name))
            note = choice.name if name == "auto" else ""
            runs[name] = made.build(cell, name, layer, params, x, note=note)
    candidates = {name: item.run for name, item in runs.items()}
    timings = compare(best.run, candidates, rounds, best.name)
    return [best.row(timings[0]), *(runs[timing.name].row(timing) for timing in timings[1:])]


def verdict(results: dict[str, list[Row]]) -> str:
    """In how many cells, by direction, `auto` was within 10 % of the best schedule measured."""
    lines = []
    for direction in DIRECTIONS:
        late = {
            key: {row.name: row.ratio for row in rows}
            for key, rows in results.items()
            if key.endswith(direction) and any(row.name == "auto" for row in rows)
        }
        behind = {
            key: ratios["auto"] / min(ratios[n] for n in SCHEDULES if n in ratios)
            for key, ratios in late.items()
        }
        within = sum(times <= 1.1 for times in behind.values())
        lines.append(f"{direction}: auto within 10 % of the best in {within} of {len(late)} cells")
        lines += [f"  {key}: {t - 1:.0%} behind" for key, t in behind.items() if t > 1.1]
    return "\n".join(lines)


class Programs:
    """What was compiled: balanced and skewed routing run the same program on other tokens."""

    def __init__(self) -> None:
        self._built: dict[tuple[object, ...], Built] = {}
        self._dense: dict[tuple[object, ...], str] = {}

    def build(
        self, cell: Cell, name: str, function: Callable[..., Any], *arguments: Any, note: str = ""
    ) -> "Built":
        """The function of that name for the cell's direction, compiled once for all routings."""
        shared = name in DENSE or name == "floor"  # their rows do not depend on a capacity
        key = (cell.name, cell.dtype, cell.direction, name, "" if shared else cell.capacity)
        if not any(known[:2] == key[:2] for known in self._built):
            self._built.clear()  # another workload: the memory is better free
        if key not in self._built:
            self._built[key] = build(cell, function, *arguments, note=note, name=name)
        return self._built[key].on(*arguments)

    def fastest_dense(self, cell: Cell, params: Any, x: jax.Array) -> "Built":
        """The fastest of the dense MLPs, found once for a workload, dtype and direction."""
        key = (cell.name, cell.dtype, cell.direction)

        def dense(name: str) -> Built:
            return self.build(
                cell, name, DENSE[name], *dense_inputs(name, params, x, cell.workload.k)
            )

        if key not in self._dense:
            first, *others = (dense(name) for name in DENSE)
            tried = compare(first.run, {d.name: d.run for d in others}, 5, first.name)
            self._dense[key] = min(tried, key=lambda timing: timing.ratio).name
        return dense(self._dense[key])


class Built:
    """A compiled function of one cell with its arguments, and what compiling it showed."""

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, note: str = "", name: str = ""
    ):
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        self.compile_seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        self.temporary_mb = memory.temp_size_in_bytes / 1e6 if memory is not None else None
        self.name, self.note = name, note
        self.compiled = compiled
        self.run = partial(compiled, *arguments)

    def on(self, *arguments: Any) -> "Built":
        """The same program on other arguments of the same shapes."""
        other = copy(self)
        other.run = partial(self.compiled, *arguments)
        return other

    def row(self, timing: Timing) -> Row:
        """The line of the table for a timing of this function."""
        return Row(**asdict(timing), compile_seconds=self.compile_seconds,
                   temporary_mb=self.temporary_mb, note=self.note)  # fmt: skip


def build(
    cell: Cell, function: Callable[..., Any], *arguments: Any, note: str = "", name: str = ""
) -> Built:
    """The function compiled for the cell's direction."""
    wanted = training(function) if cell.direction == "training" else function
    return Built(wanted, *arguments, note=note, name=name)


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


def choice_of(cell: Cell, params: Any, x: jax.Array) -> FormatChoice:
    """The format that `auto` takes in the cell's direction, and what it estimated."""
    lowered = layer_of(cell, "auto").lower(params, x)
    return lowered.choice if cell.direction == "training" else lowered.inference_choice


def output_of(layer: moegen.Layer) -> Callable[..., Any]:
    """The layer as a function of parameters and tokens that gives the tokens only."""
    return lambda params, x: layer(params, x)[0]


def can_run(schedule: str) -> bool:
    """Whether the kernel of the schedule of that name can be had here; prints why not."""
    reason = native.obstacle() if schedule == "native" else ""
    if reason:
        print(f"  {schedule} left out: {reason}", file=sys.stderr)
    return not reason


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
