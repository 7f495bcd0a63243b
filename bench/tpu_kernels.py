"""Grouped products for a TPU that is not here: the compiler's estimate of their cycles.

The estimate knows a fixed number of equal steps only. So each height that a kernel computes is
compiled alone, for 2 and for 4 steps: the difference is a step's cost, the rest what starting and
ending cost. A case is their sum over the visits that its sizes make, with the listing of these.
A step waits for its own blocks; that all weights pass through HBM is not in it (docs/kernels.md).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from moegen.kernels.grouped_dot.tiles_tpu import dot_tile, outer_tile
from moegen.kernels.grouped_dot.visits import expert_visits, row_visits
from moegen.tune.target import TARGETS
from moegen.tune.tpu_compiler import Compilation, Job, compile_for

ROWS, NARROW, WIDE = 8192, 1024, 4096
SKEWED = (3000, 100, 2000, 37, 1500, 55, 1000, 500)
PRODUCTS = ("fwd", "dlhs", "drhs", "fwd+gelu")
FLOPS_PER_CYCLE = {"tpu_v5e": 131072, "tpu_v6e": 524288}
"""Of the MXUs in bf16: four of 128 x 128, two of 256 x 256, a multiply and an add in each cell."""
MEGABLOX = ((512, 1024), (256, 1024), (128, 1024), (256, 2048), (128, 2048))
"""Rows and columns of megablox's tiles that are tried, over the whole contracted width."""


@dataclass(frozen=True)
class Kernel:
    """A kernel with a tile for a product.

    `step`: cycles of a step per height; `fixed`: cycles of a call beside its steps.
    """

    label: str
    columns: int
    heights: tuple[int, ...]
    step: dict[int, float]
    fixed: float

    def cycles(self, pieces: Counter[int]) -> float:
        """Of a call that computes so many pieces of each height for each block of columns."""
        return self.fixed + self.columns * sum(n * self.step[h] for h, n in pieces.items())


def sizes_of(experts: int, routing: str) -> np.ndarray:
    """Rows of each expert: equal, or as in issue 4, a quarter of each four times for 32 experts."""
    if routing == "balanced":
        return np.full(experts, ROWS // experts)
    ends = np.cumsum(np.tile(SKEWED, experts // 8)) * 8 // experts
    return np.diff(ends, prepend=0)


def pieces(sizes: np.ndarray, heights: Sequence[int], outer: bool) -> Counter[int]:
    """How often each height is computed, visit by visit, as `compute_heights` does."""
    tall, most, *less = (*heights, *([heights[0]] if len(heights) == 1 else ()))
    listed = (expert_visits if outer else row_visits)(jnp.asarray(sizes), ROWS, tall)
    *_, firsts, pasts = (np.asarray(a)[: int(listed[4])] for a in listed[:4])
    found: Counter[int] = Counter()
    for first, past in zip(firsts.tolist(), pasts.tolist(), strict=True):
        needed = past - (first & -16)
        enough = past == tall if outer else needed > tall - (most - (less[0] if less else 0))
        if first == 0 and enough:
            found[tall] += 1
            continue
        left = needed % most
        rest = left > (less[0] if less else 0)
        found[most] += needed // most + rest
        if left and not rest:
            found[min(h for h in less if h >= left)] += 1
    return found


def visits(sizes: np.ndarray, tall: int) -> Counter[int]:
    """Of megablox: every tile whole, once for each expert that owns rows of it."""
    return Counter({tall: int(row_visits(jnp.asarray(sizes), ROWS, tall)[4])})


def run(arguments: argparse.Namespace) -> int:
    """Prints a table per product; returns the exit code."""
    target = arguments.target.replace("-", "_")
    if target not in FLOPS_PER_CYCLE:
        known = ", ".join(FLOPS_PER_CYCLE)
        raise ValueError(f'--target "{arguments.target}": cycles are estimated for {known}')
    bound = 2 * ROWS * NARROW * WIDE / FLOPS_PER_CYCLE[target]
    print(f"{ROWS} rows, {NARROW} x {WIDE}, bf16, {target}: the MXUs need {bound:.0f} cycles\n")
    (dense,) = _compile(target, [Job("dense", _CASE + "dense", _shape(ROWS, NARROW, WIDE))])
    print(f"XLA's dense product   {_fraction(bound, dense.cycles)}\n")
    for product in (p for p in PRODUCTS if p.partition("+")[0] in arguments.products):
        print(f"{'product':<10}{'experts':>8}  {'sizes':<10}{'moegen':>8}{'cycles':>9}{'tile':>12}"
              f"{'megablox':>10}{'cycles':>9}{'tile':>12}")  # fmt: skip
        for experts in (8, 32):
            for line in _lines(target, product, experts, bound):
                print(line, flush=True)
        print()
    return 0


def _lines(target: str, product: str, experts: int, bound: float) -> Iterator[str]:
    """One line per routing: our kernel, and megablox at the tile that is its best there."""
    ours = _ours(target, product, experts)
    listing = _listing(target, ours, experts)
    others = _megablox(target, product, experts)
    for routing in ("balanced", "skewed"):
        sizes = sizes_of(experts, routing)
        cycles = ours.cycles(pieces(sizes, ours.heights, product == "drhs")) + listing
        line = f"{product:<10}{experts:>8}  {routing:<10}{bound / cycles:>8.3f}{cycles:>9.0f}"
        line += f"{ours.label:>12}"
        found = [(k.cycles(visits(sizes, k.heights[0])), k.label) for k in others]
        if any(cost < bound for cost, _ in found):
            line += "  its products stand behind branches on data: no estimate"
        elif found:
            cost, best = min(found)
            line += f"{bound / cost:>10.3f}{cost:>9.0f}{best:>12}"
        yield line


_CASE = "moegen.tune.tpu_cases:"


def _shape(rows: int, depth: int, width: int) -> dict[str, int]:
    return {"rows": rows, "depth": depth, "width": width}


def _ours(target: str, product: str, experts: int) -> Kernel:
    """The kernel with the tile that `tiles_tpu` takes, each of its heights compiled alone."""
    vmem = TARGETS[target].on_chip * 3 // 4
    bf16 = "bfloat16"
    if product == "drhs":
        deep, wide, *heights = outer_tile(ROWS, NARROW, WIDE, experts, bf16, vmem)
        columns, block, tile = (NARROW // deep) * (WIDE // wide), (deep, wide), [deep, wide]
        settings = {}
    else:
        turned = product == "dlhs"
        depth, width = (WIDE, NARROW) if turned else (NARROW, WIDE)
        found = dot_tile(ROWS, depth, width, experts, (bf16, bf16), vmem, turned)
        wide, *heights = found
        columns, block, tile = width // wide, (depth, wide), [wide]
        settings = {"transposed": turned, "epilogue": "gelu" if product == "fwd+gelu" else ""}
    case = _CASE + ("outer" if product == "drhs" else "dot")
    jobs = [
        Job(f"{h}", case, {**_shape(h * n, *block), "experts": experts, "tile": [*tile, h],
                           "visits": n, **settings})
        for h in heights
        for n in (2, 4)
    ]  # fmt: skip
    step, fixed = _steps(_compile(target, jobs))
    return Kernel(f"{heights[0]}x{wide}", columns, tuple(heights), step, fixed[heights[0]])


def _listing(target: str, kernel: Kernel, experts: int) -> float:
    """Cycles that listing the visits takes, before the kernel starts."""
    arguments = {"rows": ROWS, "experts": experts, "tall": kernel.heights[0]}
    (found,) = _compile(target, [Job("listing", _CASE + "schedule", arguments)])
    return float(found.cycles or 0)


def _megablox(target: str, product: str, experts: int) -> list[Kernel]:
    """Of megablox, every tile that compiles; none for what it does not have."""
    if product == "fwd+gelu":
        return []
    found = []
    for tall, wide in MEGABLOX:
        depth, width = (WIDE, NARROW) if product == "dlhs" else (NARROW, WIDE)
        deep = min(depth, 1024) if product == "drhs" else depth
        cut = min(wide, width) if product != "dlhs" else min(wide // 4, width)
        case = "bench.tpu_yardsticks:" + ("outer" if product == "drhs" else "dot")
        more = {"transposed": True} if product == "dlhs" else {}
        jobs = [
            Job(f"{tall}", case, {**_shape(tall * n, depth, cut), "experts": experts,
                                  "tile": [tall, deep, cut], "visits": n, **more})
            for n in (2, 4)
        ]  # fmt: skip
        results = _compile(target, jobs, may_fail=True)
        if len(results) == len(jobs):
            step, fixed = _steps(results)
            found.append(Kernel(f"{tall}x{cut}", width // cut, (tall,), step, fixed[tall]))
    return found


def _steps(results: Iterable[Compilation]) -> tuple[dict[int, float], dict[int, float]]:
    """Cycles of a step and of the rest, by height, from runs of two and of four steps."""
    seen: dict[int, list[int]] = {}
    for result in results:
        seen.setdefault(int(result.name), []).append(result.cycles or 0)
    step = {h: (four - two) / 2 for h, (two, four) in seen.items()}
    return step, {h: two - 2 * step[h] for h, (two, _) in seen.items()}


def _compile(target: str, jobs: Sequence[Job], may_fail: bool = False) -> list[Compilation]:
    """Compiles with a line of progress; a program that is refused is an error unless it may be."""
    done = []
    for result in compile_for(target, jobs):
        print(f"  {result.name}: {result.error or result.cycles}", file=sys.stderr)
        if not result.error:
            done.append(result)
        elif not may_fail:
            raise ValueError(f"{result.name} does not compile for {target}: {result.error}")
    return done


def _fraction(bound: float, cycles: int | None) -> str:
    return f"{bound / cycles:.3f}{cycles:>9}" if cycles else "no estimate"
