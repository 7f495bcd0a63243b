"""Cycles of a grouped product on a TPU that is not here, from its compiler's estimate of steps.

The estimate knows a fixed number of equal steps only. So a height that a kernel computes is
compiled alone, for 2 and for 4 steps: the difference is a step's cost, the rest what starting and
ending cost. Heights between two powers of two are on a line between these (docs/kernels.md), except
where the weights take longer to load than their rows. A product is the sum over the visits that the
sizes of its experts make.
A step waits for its own blocks; that all weights pass through HBM is not in it (docs/kernels.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from moegen.kernels.grouped_dot.pallas_tpu_outer import own_visits
from moegen.kernels.grouped_dot.visits import row_visits
from moegen.tune.compiler import Job
from moegen.tune.product import Product
from moegen.tune.tpu_compiler import Compilation, compile_for

CASES = "moegen.tune.tpu_cases:"
FEW, MORE = 2, 4
CURVED = 64
"""Rows below which a step's cost is no line: 60 take as long as to load weights on a v5e."""
Told = Callable[[Compilation], None]


@dataclass(frozen=True, slots=True)
class Block:
    """A kernel on one block of columns, whose steps are to be estimated.

    Attributes:
      case: "module:function", as of a `Job`.
      arguments: all but rows, tile and visits.
      tile: for a height.
      heights: that may be computed, the tallest first.
    """

    case: str
    arguments: Mapping[str, Any]
    tile: Callable[[int], tuple[int, ...]]
    heights: tuple[int, ...]

    def jobs(self, name: str) -> list[Job]:
        """Each height that is not between two others, for a few steps and for more."""
        return [
            Job(f"{name} {h} {n}", self.case, {
                **self.arguments, "rows": h * n, "tile": self.tile(h), "visits": n,
            })
            for h in self.heights
            if h & (h - 1) == 0 or h < CURVED or h == self.heights[0]
            for n in (FEW, MORE)
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Steps:
    """Cycles by height: of a step, and of a call beside its steps."""

    step: Mapping[int, float]
    fixed: Mapping[int, float]

    def cycles(self, pieces: Counter[int], columns: int, tall: int) -> float:
        """Of a call with tiles of that height, so many pieces for each block of columns."""
        return self.fixed[tall] + columns * sum(n * self.step[h] for h, n in pieces.items())


def estimate_steps(
    target: str, blocks: Mapping[str, Block], told: Told = lambda result: None
) -> dict[str, Steps | str]:
    """For each block by name its steps, or the reason that the compiler gives.

    Args:
      target: one of `tpu_compiler.ESTIMATED`.
      blocks: what to compile, by names without blanks.
      told: of every program as it is compiled.

    Raises:
      TuneError: without libtpu.
    """
    jobs = [job for name, block in blocks.items() for job in block.jobs(name)]
    seen: dict[str, dict[tuple[int, int], int]] = {name: {} for name in blocks}
    refused: dict[str, str] = {}
    for result in compile_for(target, jobs):
        told(result)
        name, height, visits = result.name.split()
        if result.cycles is None:
            refused.setdefault(name, result.error or "the compiler has no estimate")
        else:
            seen[name][int(height), int(visits)] = result.cycles
    return {n: refused.get(n) or steps_of(seen[n], b.heights) for n, b in blocks.items()}


def steps_of(cycles: Mapping[tuple[int, int], int], heights: Sequence[int] = ()) -> Steps:
    """From the cycles of runs, by height and number of steps; those of other heights between."""
    known = sorted({h for h, _ in cycles})
    step = {h: (cycles[h, MORE] - cycles[h, FEW]) / (MORE - FEW) for h in known}
    fixed = {h: cycles[h, FEW] - FEW * step[h] for h in known}
    between = [h for h in heights if h not in step]
    for found in (step, fixed):
        line = np.interp(between, known, [found[h] for h in known])
        found.update(zip(between, line.tolist(), strict=True))
    return Steps(step, fixed)


def block_of(product: Product, tile: Sequence[int]) -> Block:
    """One block of columns of a product with a tile of `grouped_dot_tpu` or `grouped_outer_tpu`."""
    block, heights = tuple(tile[: product.widths]), tuple(tile[product.widths :])
    deep, wide = block if product.kind == "outer" else (product.depth, *block)
    arguments = {
        "kind": product.kind, "depth": deep, "width": wide, "experts": product.experts,
        "dtypes": product.dtypes, "reads": product.reads, "transposed": product.transposed,
    }  # fmt: skip
    return Block(CASES + "steps", arguments, lambda height: (*block, height), heights)


def columns_of(product: Product, tile: Sequence[int]) -> int:
    """Blocks of the result that a kernel goes through one after the other."""
    sizes = (product.depth, product.width) if product.kind == "outer" else (product.width,)
    return int(np.prod([-(-size // part) for size, part in zip(sizes, tile, strict=False)]))


def product_cycles(product: Product, tile: Sequence[int], steps: Steps, sizes: np.ndarray) -> float:
    """Of a whole product; `sizes`: rows of each expert."""
    heights = tuple(tile[product.widths :])
    found = pieces(sizes, product.rows, heights, product.kind == "outer")
    return steps.cycles(found, columns_of(product, tile), heights[0])


def pieces(sizes: np.ndarray, rows: int, heights: Sequence[int], outer: bool) -> Counter[int]:
    """How often each height is computed, visit by visit, as the kernels do."""
    listed = (own_visits if outer else row_visits)(jnp.asarray(sizes), rows, heights[0])
    *_, firsts, pasts = (np.asarray(a)[: int(listed[4])] for a in listed[:4])
    found: Counter[int] = Counter()
    for first, past in zip(firsts.tolist(), pasts.tolist(), strict=True):
        found += (_outer_pieces if outer else _dot_pieces)(first, past, heights)
    return found


def _dot_pieces(first: int, past: int, heights: Sequence[int]) -> Counter[int]:
    """Of one visit, as `compute_heights`: the second height, then one that holds the rest."""
    tall, most, *less = (*heights, *(heights if len(heights) == 1 else ()))
    needed, fewer = past - (first & -16), less[0] if less else 0
    if first == 0 and needed > tall - (most - fewer):
        return Counter({tall: 1})
    left = needed % most
    found = Counter({most: needed // most + (left > fewer)})
    if 0 < left <= fewer:
        found[min(h for h in less if h >= left)] += 1
    return found


def _outer_pieces(first: int, past: int, heights: Sequence[int]) -> Counter[int]:
    """Of one visit, as `outer_kernel`: the second height, then each that the rest is a sum of."""
    tall, most, *less = (*heights, *(heights if len(heights) == 1 else ()))
    if (first, past) == (0, tall):
        return Counter({tall: 1})
    needed = -(-past // heights[-1]) * heights[-1] if past > first else 0
    return Counter({most: needed // most}) + Counter({h: 1 for h in less if needed & h})
