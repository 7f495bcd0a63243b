"""The layer of `auto` against others' ways to run it: one-hot einsum, ragged_dot, tokamax, PyTorch.

`auto` is the yardstick: a ratio above 1 is how many times as long another takes. All but `onehot`
compute the same dropless layer; `onehot` drops what is over a capacity factor of 1.05, because
masks with room for everything do not fit into memory.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from bench import rivals, suite, torch_rivals
from bench.layer import build, choice_of, layer_of, output_of
from bench.report import Row
from bench.timing import Timing, compare
from bench.workloads import DIRECTIONS, DTYPES, QUICK, ROUTINGS, WORKLOADS, Cell, cells, inputs

RIVALS = ("sorted", "onehot", "ragged_dot", "tokamax", *torch_rivals.LAYERS)
"""`sorted` is no rival but the same layer by XLA alone, sorted rows."""
CAPACITY = 1.05
"""The capacity factor of `onehot`."""
SLOW, SECONDS = 10.0, 0.2
"""A rival whose first call takes this many times as long as `auto`, and longer than this, is timed
by one call more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    suite.add_arguments(parser, quick="two cells of a small layer: not a result")
    suite.add_lists(
        parser,
        workloads=tuple(WORKLOADS),
        dtypes=DTYPES,
        routings=ROUTINGS,
        directions=DIRECTIONS,
        rivals=RIVALS,
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure the cells, one table each; returns the exit code."""
    able = available(arguments.rivals)
    done: dict[str, list[Row]] = {}

    def one(cell: Cell, rounds: int) -> list[Row]:
        done[cell.key] = measure(cell, able, rounds)
        return done[cell.key]

    code = suite.run("compare", arguments, {c.key: partial(one, c) for c in _cells(arguments)})
    print(verdict(done))
    return code


def _cells(arguments: argparse.Namespace) -> Iterable[Cell]:
    if arguments.quick:
        return cells({"quick": QUICK}, DTYPES[:1], ROUTINGS[1:], ("dropless",), DIRECTIONS)
    return cells(
        {name: WORKLOADS[name] for name in arguments.workloads}, arguments.dtypes,
        arguments.routings, ("dropless",), arguments.directions,
    )  # fmt: skip


def available(names: Iterable[str]) -> tuple[str, ...]:
    """The rivals that can run here; prints why others cannot."""
    loaders = {"tokamax": rivals.tokamax_ragged_dot}
    loaders |= dict.fromkeys(torch_rivals.LAYERS, torch_rivals.load)
    found = []
    for name in names:
        try:
            loaders.get(name, lambda: None)()
        except Exception as error:  # a package that is there may fail to load in its own way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"  {name} left out: {reason}", file=sys.stderr)
        else:
            found.append(name)
    return tuple(found)


def measure(cell: Cell, names: tuple[str, ...], rounds: int) -> list[Row]:
    """`auto` and the rivals, interleaved; ratios to `auto`."""
    params, x = inputs(cell)
    layer = layer_of(cell, "auto")
    note = choice_of(cell, params, x).name
    auto = build(cell, output_of(layer), params, x, note=note)
    made: dict[str, tuple[Callable[[], Any], Callable[[Timing], Row]]] = {}
    for name in names:
        try:
            made[name] = _rival(cell, name, params, x)
        except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
            print(f"  {name} left out: {str(error).splitlines()[0]}", file=sys.stderr)
    seconds = {name: _seconds(run) for name, (run, _) in made.items()}
    _seconds(auto.run)
    limit = max(SLOW * _seconds(auto.run), SECONDS, min(seconds.values(), default=0.0))
    quick = {name: made[name][0] for name in made if seconds[name] <= limit}
    timings = compare(auto.run, quick, rounds, "auto")
    rows = [auto.row(timings[0]), *(made[t.name][1](t) for t in timings[1:])]
    for name in made.keys() - quick.keys():
        milliseconds = _seconds(made[name][0]) * 1e3
        ratio = milliseconds / timings[0].median_ms
        row = made[name][1](Timing(name, milliseconds, ratio, ratio, ratio))
        rows.append(replace(row, note=f"{row.note}, one call".lstrip(", ")))
    return rows


def _rival(
    cell: Cell, name: str, params: Any, x: jax.Array
) -> tuple[Callable[[], Any], Callable[[Timing], Row]]:
    """A call of a rival, and how a timing of it becomes a line of the table."""
    k = cell.workload.k
    if name in torch_rivals.LAYERS:
        run = torch_rivals.call(name, params, x, k, training=cell.direction == "training")
        note = f"PyTorch {torch_rivals.load().__version__}"
        return run, lambda t: Row(**vars(t), compile_seconds=0.0, temporary_mb=None, note=note)
    if name == "sorted":
        built = build(cell, output_of(layer_of(cell, name)), params, x)
        return built.run, built.row
    if name == "onehot":
        capacity = math.ceil(cell.workload.tokens * k / cell.workload.experts * CAPACITY)
        function = partial(rivals.onehot, k=k, capacity=capacity)
        note = f"drops {dropped(cell, params, x, capacity):.0%}"
    else:
        dot = jax.lax.ragged_dot if name == "ragged_dot" else rivals.tokamax_ragged_dot()
        function, note = partial(rivals.ragged, k=k, ragged_dot=dot), ""
    built = build(cell, function, params, x, note=note)
    return built.run, built.row


def dropped(cell: Cell, params: Any, x: jax.Array, capacity: int) -> float:
    """The share of assignments that a capacity per expert leaves out."""
    _, expert = rivals.route(params, x, cell.workload.k)
    loads = np.bincount(np.asarray(expert).ravel(), minlength=cell.workload.experts)
    return float(np.maximum(loads - capacity, 0).sum() / loads.sum())


def verdict(results: dict[str, list[Row]]) -> str:
    """In how many cells `auto`, and `sorted` if measured, beat all others, and where not."""
    lines = []
    for ours in ("auto", "sorted"):
        own = {key: row.ratio for key, rows in results.items() for row in rows if row.name == ours}
        lost = [
            f"{key} {row.name} {row.ratio / own[key]:.2f}"
            for key, rows in results.items()
            for row in rows
            if key in own and row.name not in ("auto", "sorted") and row.ratio < own[key]
        ]
        won = len(own) - len({line.split()[0] for line in lost})
        if own:
            lines.append(f"{ours} is the fastest in {won} of {len(own)} cells")
            lines += [f"  faster: {line}" for line in lost]
    return "\n".join(lines)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
