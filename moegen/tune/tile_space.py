"""What a grouped product may run by: every kernel with every tile, and why others are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moegen.kernels.grouped_dot.tiles_tpu import (
    LEAST,
    LEAST_SUMMED,
    TALLEST,
    dot_tile,
    heights,
    outer_tile,
    parts,
    rests,
    widths,
)
from moegen.kernels.grouped_dot.vmem import dot_bytes, outer_bytes
from moegen.tune.pallas_tpu import vmem_for
from moegen.tune.product import Product
from moegen.tune.target import MIB, Target


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """A kernel with a tile; kernels without tiles have ()."""

    kernel: str
    tile: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.kernel, *map(str, self.tile)))


@dataclass(frozen=True, slots=True)
class Space:
    """What may run a product, the one taken untuned first; and the reason for each exclusion."""

    legal: tuple[Candidate, ...]
    excluded: dict[Candidate, str]


def space_of(product: Product, target: Target) -> Space:
    """The space of a product on a target; no candidates where nothing has a choice."""
    if target.platform == "cpu":
        return Space((Candidate("runs"), Candidate("blocks")), {})
    if target.platform != "tpu":
        return Space((), {})
    untuned = Candidate("pallas_tpu", untuned_tile(product, target))
    legal, excluded = [], {}
    for candidate in _all_tiles(product):
        if reason := _exclusion(product, candidate.tile, vmem_for(target)):
            excluded[candidate] = reason
        elif candidate != untuned:
            legal.append(candidate)
    return Space((untuned, *legal) if untuned.tile else tuple(legal), excluded)


def untuned_tile(product: Product, target: Target) -> tuple[int, ...]:
    """The tile that `tiles_tpu` takes; empty if none fits."""
    p, vmem = product, vmem_for(target)
    if p.kind == "outer":
        return outer_tile(p.rows, p.depth, p.width, p.experts, p.dtypes[0], vmem)
    return dot_tile(p.rows, p.depth, p.width, p.experts, p.dtypes, vmem, p.transposed)


def _all_tiles(product: Product) -> Iterator[Candidate]:
    least = LEAST_SUMMED if product.kind == "outer" else LEAST
    deeps = widths(product.depth) if product.kind == "outer" else [0]
    for tall in (TALLEST >> i for i in range(TALLEST.bit_length()) if TALLEST >> i >= LEAST):
        for deep in deeps:
            for wide in widths(product.width):
                block = (deep, wide) if deep else (wide,)
                made = parts(tall, least) if deep else rests(tall)
                yield Candidate("pallas_tpu", (*block, *(made or (tall,))))


def _exclusion(product: Product, tile: tuple[int, ...], vmem: int) -> str:
    """Why a tile is not tried; empty if it is."""
    p, tall = product, tile[product.widths]
    if tall not in heights(p.rows, p.experts) and (p.kind == "dot" or tall != LEAST_SUMMED):
        return f"{tall} rows are more than twice an expert's mean load, {p.rows // p.experts}"
    if p.kind == "outer" and tall < LEAST_SUMMED:
        return f"the MXU takes as long to sum over {tall} rows as over {LEAST_SUMMED}"
    if p.kind == "outer":
        needed = outer_bytes(tall, tile[0], tile[1], p.dtypes[0])
    else:
        needed = dot_bytes(tall, p.depth, tile[0], p.dtypes, p.transposed)
    if needed > vmem:
        return f"it takes {needed / MIB:.0f} MiB of VMEM, a kernel may take {vmem // MIB}"
    return ""
