"""Grouped products for a TPU that is not here: the compiler's estimate of their cycles.

How a product's cycles follow from the estimate is in `moegen.tune.tpu_cycles`. The cases of issue 4
come first; the held-out ones have shapes and loads that no tile was chosen by.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moegen.kernels.grouped_dot.tiles_tpu import dot_tile, outer_tile, widths
from moegen.tune.compiler import Job
from moegen.tune.pallas_tpu import vmem_for
from moegen.tune.product import SKEW, Product, loads
from moegen.tune.target import TARGETS
from moegen.tune.tiles import shipped
from moegen.tune.tpu_compiler import Compilation, compile_for
from moegen.tune.tpu_cycles import (
    CASES,
    Block,
    Steps,
    block_of,
    columns_of,
    estimate_steps,
    product_cycles,
)

PRODUCTS = ("fwd", "dlhs", "drhs", "fwd+gelu")
FLOPS_PER_CYCLE = {"tpu_v5e": 131072, "tpu_v6e": 524288}
"""Of the MXUs in bf16: four of 128 x 128, two of 256 x 256, a multiply and an add in each cell."""
MEGABLOX = ((512, 1024), (256, 1024), (128, 1024), (256, 2048), (128, 2048))
"""Rows of megablox's tiles that are tried, and columns of the weights where they are 1024 deep."""
FEWEST = 60
"""Rows that an MXU multiplies in the time it takes to load 128 x 128 weights (docs/kernels.md)."""
Shape = tuple[int, int, int, int]
"""Rows, width of a token, hidden width, experts."""
ISSUE = ((8192, 1024, 4096, 8), (8192, 1024, 4096, 32))
HELD_OUT = (
    (3136, 512, 2048, 32),
    (12544, 768, 3072, 32),
    (12544, 1024, 4096, 32),
    (8192, 2048, 1408, 64),
)
"""V-MoE-S/32, B/16 and L/16 on 32 images, two choices a token; and many narrow experts."""


@dataclass(frozen=True)
class Case:
    """One product of a shape, with the tile that our kernel takes."""

    name: str
    product: Product
    tile: tuple[int, ...]

    @property
    def tall(self) -> int:
        """Rows of our tile."""
        return self.tile[self.product.widths]

    @property
    def label(self) -> str:
        """Our tile: rows by columns, for the gradient of weights rows by both widths."""
        return "x".join(map(str, (self.tall, *self.tile[: self.product.widths])))

    def blocks(self) -> dict[str, Block]:
        """Our kernel on one block of columns, and megablox with each tile that is tried."""
        ours = block_of(self.product, self.tile)
        if self.name != "fwd+gelu":
            return {"ours": ours} | dict(self._megablox())
        given = {name: ours.arguments[name] for name in ("depth", "width", "experts")}
        return {
            "ours": Block(CASES + "dot", {**given, "epilogue": "gelu"}, ours.tile, ours.heights)
        }

    def _megablox(self) -> Iterator[tuple[str, Block]]:
        p, case = self.product, f"bench.tpu_yardsticks:{self.product.kind}"
        deep = min(p.depth, 1024) if p.kind == "outer" else p.depth
        more = {"transposed": True} if p.transposed else {}
        for tall, columns in MEGABLOX:
            known = widths(p.width)
            wide = max([w for w in known if w * deep <= 1024 * columns], default=min(known))
            arguments = {"depth": deep, "width": wide, "experts": p.experts, **more}
            yield f"{tall}x{wide}", Block(case, arguments, _TallFirst(deep, wide), (tall,))


@dataclass(frozen=True)
class _TallFirst:
    """A tile of megablox: rows, contracted width, columns."""

    deep: int
    wide: int

    def __call__(self, tall: int) -> tuple[int, ...]:
        return (tall, self.deep, self.wide)


def cases(shape: Shape, target: str, products: tuple[str, ...]) -> Iterator[Case]:
    """The products of a shape's up projection, each with the tile that is taken for the target."""
    rows, narrow, wide, experts = shape
    vmem, bf16 = vmem_for(TARGETS[target]), "bfloat16"
    for name in products:
        if name == "drhs":
            summed = Product("outer", rows, narrow, wide, experts, (bf16,))
            tile = outer_tile(rows, narrow, wide, experts, bf16, vmem)
            yield Case(name, summed, tuned(summed, target) or tile)
            continue
        turned = name == "dlhs"
        depth, width = (wide, narrow) if turned else (narrow, wide)
        made = Product("dot", rows, depth, width, experts, (bf16, bf16), transposed=turned)
        tile = dot_tile(rows, depth, width, experts, made.dtypes, vmem, turned)
        yield Case(name, made, tuned(made, target) or tile)


def tuned(product: Product, target: str) -> tuple[int, ...]:
    """The tile of the table that comes with moegen; empty if it has none."""
    found, _ = shipped().find(product, TARGETS[target], "")
    return found.tile if found else ()


def routings(shape: Shape) -> dict[str, np.ndarray]:
    """Rows of each expert by routing: those of issue 4, and others for the shapes held out."""
    rows, _, _, experts = shape
    skewed = np.resize(SKEW, experts) if shape in ISSUE else 1 / np.arange(1, experts + 1)
    name = "skewed" if shape in ISSUE else "zipf"
    return {"balanced": loads(rows, np.ones(experts)), name: loads(rows, skewed)}


def run(arguments: argparse.Namespace) -> int:
    """Prints a table per shape; returns the exit code."""
    target = arguments.target.replace("-", "_")
    if target not in FLOPS_PER_CYCLE:
        known = ", ".join(FLOPS_PER_CYCLE)
        raise ValueError(f'--target "{arguments.target}": cycles are estimated for {known}')
    products = tuple(p for p in PRODUCTS if p.partition("+")[0] in arguments.products)
    for shape in (*ISSUE, *HELD_OUT):
        print(table(shape, target, tuple(cases(shape, target, products))), flush=True)
    return 0


def table(shape: Shape, target: str, todo: tuple[Case, ...]) -> str:
    """Of one shape: a line per product and routing."""
    rows, narrow, wide, experts = shape
    bound = 2 * rows * narrow * wide / FLOPS_PER_CYCLE[target]
    blocks = {f"{c.name}/{n}": block for c in todo for n, block in c.blocks().items()}
    steps = estimate_steps(target, blocks, told)
    plain = _plain(shape, target, {case.tall for case in todo})
    held = "" if shape in ISSUE else ", held out"
    lines = [
        f"{rows} rows, {narrow} x {wide}, {experts} experts, bf16, {target}{held}: "
        f"the MXUs need {bound:.0f} cycles, XLA's dense product is at {bound / plain['dense']:.3f}",
        f"{'product':<9} {'sizes':<9}{'moegen':>7}{'cycles':>9}{'tile':>15}"
        f"{'ceiling':>9}{'megablox':>10}{'cycles':>9}{'tile':>11}",
    ]
    for case in todo:
        found = {n: steps[f"{case.name}/{n}"] for n in case.blocks()}
        if isinstance(refused := found["ours"], str):
            raise ValueError(f"{case.name} of {shape} does not compile for {target}: {refused}")
        known = {n: one for n, one in found.items() if not isinstance(one, str)}
        for routing, sizes in routings(shape).items():
            listing = plain[f"listing/{case.tall}"]
            lines.append(_line(case, routing, sizes, known, listing, bound))
    return "\n".join(lines) + "\n"


def _line(
    case: Case,
    routing: str,
    sizes: np.ndarray,
    steps: Mapping[str, Steps],
    listing: int,
    bound: float,
) -> str:
    """Our kernel with the listing of its visits, and megablox at the tile that is its best here."""
    cycles = product_cycles(case.product, case.tile, steps["ours"], sizes) + listing
    text = f"{case.name:<9} {routing:<9}{bound / cycles:>7.3f}{cycles:>9.0f}{case.label:>15}"
    text += f"{ceiling(sizes, case.product.kind == 'outer'):>9.3f}"
    others = [(_whole(case.product, n, s, sizes), n) for n, s in steps.items() if n != "ours"]
    if not others:
        return text
    best, label = min(others)
    return text + f"{bound / best:>10.3f}{best:>9.0f}{label:>11}"


def ceiling(sizes: np.ndarray, outer: bool) -> float:
    """The fraction of the MXUs' bound that no kernel of these sizes passes on a v5e.

    An expert's rows start in a register of 16 that may be shared. Multiplied by weights they take
    as long as 60 at least, the time to load the weights, and as long as all rows of their
    registers; summed over, as long as a multiple of 128. Neither steps nor visits are in it.
    """
    grain, least = (128, 0) if outer else (16, FEWEST)
    lead = (np.cumsum(sizes) - sizes) % 16
    taken = np.maximum(-(-(sizes + lead) // grain) * grain, least)
    return float(sizes.sum() / taken[sizes > 0].sum())


def _whole(product: Product, label: str, steps: Steps, sizes: np.ndarray) -> float:
    """Of megablox: every tile is computed whole, once for each expert that owns rows of it."""
    tall, wide = map(int, label.split("x"))
    outer = product.kind == "outer"
    tile = (min(product.depth, 1024), wide) if outer else (wide,)
    count = visits(sizes, tall, outer)
    return steps.cycles(Counter({tall: count}), columns_of(product, tile), tall)


def visits(sizes: np.ndarray, tall: int, outer: bool) -> int:
    """How many pairs of a tile and an expert with rows in it there are; `outer`: one if none."""
    ends = np.cumsum(sizes)
    found = (ends - 1) // tall - (ends - sizes) // tall + 1
    return int(np.where(sizes > 0, found, int(outer)).sum())


def _plain(shape: Shape, target: str, talls: set[int]) -> dict[str, int]:
    """Cycles of XLA's own product with one expert's weights, and of listing the visits of tiles."""
    rows, narrow, wide, experts = shape
    jobs = [Job("dense", CASES + "dense", {"rows": rows, "depth": narrow, "width": wide})]
    for tall in sorted(talls):
        arguments = {"rows": rows, "experts": experts, "tall": tall}
        jobs.append(Job(f"listing/{tall}", CASES + "schedule", arguments))
    found = {}
    for result in compile_for(target, jobs):
        told(result)
        if result.cycles is None:
            raise ValueError(f"{result.name} has no estimate for {target}: {result.error}")
        found[result.name] = result.cycles
    return found


def told(result: Compilation) -> None:
    """A line of progress."""
    print(f"  {result.name}: {result.error or result.cycles}", file=sys.stderr, flush=True)
