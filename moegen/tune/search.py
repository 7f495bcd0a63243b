"""The best kernel and tile of a product: by the clock, by the compiler's estimate, or by the model.

Loads are not known beforehand: a cost is that of equal loads and that of skewed ones together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from moegen.errors import TuneError
from moegen.tune.clock import seconds_of
from moegen.tune.kernel_model import kernels_of, predict
from moegen.tune.problem import Problem
from moegen.tune.product import SKEW, Product, loads
from moegen.tune.target import Target, target_of
from moegen.tune.tile_space import Candidate, Space, space_of
from moegen.tune.tiles import (
    ESTIMATED,
    MEASURED,
    MODELLED,
    Tuned,
    read_tiles,
    source_hash,
    versions,
    write_tiles,
)
from moegen.tune.tpu_compiler import ESTIMATED as HAVE_CYCLES
from moegen.tune.tpu_compiler import libtpu_folder, libtpu_version
from moegen.tune.tpu_cycles import block_of, estimate_steps, product_cycles

MODEL = "pallas_tpu"
"""The kernel of the model (tokamax's) whose rates stand for ours where there is no compiler."""
MOST = 6
"""Candidates that are measured, and widths of a block that are compiled: the model's best."""
Told = Callable[[str], None]


def tune(
    products: Iterable[Product], target: Target, store: Path, told: Told
) -> Iterator[tuple[Tuned, bool]]:
    """Yields the choice for each product and whether it is new; the store has it by then.

    Args:
      products: what to tune.
      target: the device; measured where it is present, else estimated.
      store: a table, read first: what it has for these kernels is not done again.
      told: of each step.

    Raises:
      TuneError: if the store is damaged, or nothing is known of the target's kernels.
      OSError: if the store cannot be written.
    """
    known = dict(read_tiles(store).entries)
    basis = basis_for(target)
    todo = list(dict.fromkeys(products))
    for number, product in enumerate(todo, 1):
        space = space_of(product, target)
        if not space.legal:
            raise TuneError(
                f"{product.key}: no kernel with a tile can run it on {target.name}",
                fix="leave it out",
            )
        blank = _entry(product, target, basis, space.legal[0], {str(space.legal[0]): math.inf})
        if blank.key in known:
            yield known[blank.key], False
            continue
        told(f"[{number}/{len(todo)}] {product.key}: {len(space.legal)} may run it")
        for reason, count in Counter(space.excluded.values()).items():
            told(f"  {count} left out: {reason}")
        costs = _costs(product, target, basis, space, told)
        best = min(costs, key=lambda c: costs[c])
        named = {str(candidate): cost for candidate, cost in costs.items()}
        found = _entry(product, target, basis, best, named)
        known[found.key] = found
        write_tiles(store, known)
        yield found, True


def products_of(shape: Sequence[int], dtype: str) -> list[Product]:
    """The three products of [rows, depth] and [experts, depth, width] and of its gradients."""
    rows, depth, width, experts = shape
    return [
        Product("dot", rows, depth, width, experts, (dtype, dtype)),
        Product("dot", rows, width, depth, experts, (dtype, dtype), transposed=True),
        Product("outer", rows, depth, width, experts, (dtype,)),
    ]


def basis_for(target: Target) -> str:
    """How products are judged on a target from here."""
    device = jax.devices()[0]
    if target_of(device.platform, device.device_kind).name == target.name:
        return MEASURED
    if target.platform != "tpu":
        raise TuneError(
            f"there is no {target.name} here to measure on, and no estimate of its kernels",
            fix="run this on such a device, or tune for a TPU",
        )
    return ESTIMATED if libtpu_folder() and target.name in HAVE_CYCLES else MODELLED


def device_name() -> str:
    """What a measurement is of."""
    return str(jax.devices()[0].device_kind)


def _entry(
    product: Product, target: Target, basis: str, best: Candidate, costs: dict[str, float]
) -> Tuned:
    device = device_name() if basis == MEASURED else target.name
    compiler = f", libtpu {libtpu_version()}" if basis == ESTIMATED else ""
    unit = {MEASURED: "ms", ESTIMATED: "cycles", MODELLED: "ms"}[basis]
    made_with = versions() + compiler
    return Tuned(
        product.key, device, basis, source_hash(target.platform, product.kind), made_with,
        best.kernel, best.tile, unit, costs,
    )  # fmt: skip


def _costs(
    product: Product, target: Target, basis: str, space: Space, told: Told
) -> dict[Candidate, float]:
    """By candidate, the untuned one first; candidates that are refused have none."""
    rows = product.load * product.experts
    shares = ([1] * product.experts, [int(n) for n in np.resize(SKEW, product.experts)])
    cases = [loads(rows, share) for share in shares]
    if basis == ESTIMATED:
        return _by_compiler(product, target, space, cases, told)
    if basis == MODELLED:
        return {c: 2e3 * modelled(product, target, c.tile) for c in space.legal}
    found = {}
    for candidate in _likely(product, target, space):
        found[candidate] = 1e3 * seconds_of(product, candidate, cases)
        told(f"{candidate}: {found[candidate]:.3f} ms")
    return found


def modelled(product: Product, target: Target, tile: tuple[int, ...]) -> float:
    """Seconds, by the kernel model's rates for others' kernels; infinite where it has none."""
    kernel, p = kernels_of(target.name).get(MODEL), product
    if kernel is None:
        return math.inf
    size, tall = (2 if p.dtypes[0] == "bfloat16" else 4), tile[p.widths]
    if p.kind == "outer":
        problem = Problem("drhs", p.rows, p.depth, p.width, p.experts, itemsize=size)
        return float(predict(problem, target, kernel, (tall, *tile[:2])))
    if p.transposed:
        problem = Problem("dlhs", p.rows, p.width, p.depth, p.experts, itemsize=size)
        return float(predict(problem, target, kernel, (tall, tile[0], p.depth)))
    problem = Problem("fwd", p.rows, p.depth, p.width, p.experts, itemsize=size)
    return float(predict(problem, target, kernel, (tall, p.depth, tile[0])))


def _likely(product: Product, target: Target, space: Space) -> list[Candidate]:
    """The untuned candidate and the best others by the model."""
    first, *others = space.legal
    if not first.tile:
        return [first, *others]
    others.sort(key=lambda c: modelled(product, target, c.tile))
    return [first, *others[: MOST - 1]]


def _by_compiler(
    product: Product, target: Target, space: Space, cases: list[np.ndarray], told: Told
) -> dict[Candidate, float]:
    """Cycles of every tile with one of the likeliest widths; each height is compiled once."""
    before = product.widths
    chosen = dict.fromkeys(c.tile[:before] for c in _likely(product, target, space))
    blocks = {}
    for widths in chosen:
        tiles = [c.tile for c in space.legal if c.tile[:before] == widths]
        tallest = max(tiles, key=lambda tile: tile[before])
        blocks["x".join(map(str, widths))] = block_of(product, tallest)
    steps = estimate_steps(
        target.name, blocks, lambda r: told(f"{r.name}: {r.error or f'{r.cycles} cycles'}")
    )
    asked = replace(product, rows=int(cases[0].sum()))
    found = {}
    for candidate in space.legal:
        one = steps.get("x".join(map(str, candidate.tile[:before])))
        if one is None or isinstance(one, str):
            continue
        found[candidate] = sum(product_cycles(asked, candidate.tile, one, s) for s in cases)
    if not found:
        reasons = {text for text in steps.values() if isinstance(text, str)}
        raise TuneError(f"{product.key}: the compiler refused all: {'; '.join(sorted(reasons))}")
    return found
