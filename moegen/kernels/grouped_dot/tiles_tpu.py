"""Which tile a TPU kernel takes for a product: the one with the fewest cycles that hide nothing.

A step costs some 300 cycles beside its products; where experts share a tile, rows are rounded up;
at the start and the end something of each kind is moved while nothing is computed. All of it is for
a v5e (docs/kernels.md).
"""

from itertools import product

from moegen.kernels.grouped_dot.vmem import (
    dot_bytes,
    gathered_bytes,
    outer_bytes,
    padded_bytes,
)
from moegen.kernels.grouped_dot.weights_tpu import chunk_of

LANES = 128
TALLEST = 1024
LEAST = 32
LEAST_SUMMED = 128
"""Rows of the least part of an outer product: the MXU takes as long to sum over fewer."""
STEP = 330
"""Cycles of a step beside its products."""
LOST = 16
"""Rows that are computed for nothing where an expert ends within a tile."""
BYTES = 455
"""Bytes that HBM moves per cycle, as the compiler reckons."""
PRODUCTS = 65536
"""Multiplications that the MXUs do per cycle."""


def dot_tile(
    rows: int,
    depth: int,
    width: int,
    experts: int,
    dtypes: tuple[str, ...],
    vmem: int,
    transposed: bool = False,
) -> tuple[int, ...]:
    """The tile of `grouped_dot_tpu`: columns, then heights; empty if none fits.

    Args:
      rows: N.
      depth: the width that is summed over.
      width: of the result.
      experts: E.
      dtypes: of the rows, then of every operand and result of the epilogue that has a row for
        each row; the product's if there is no epilogue.
      vmem: bytes that it may take.
      transposed: whether weights are turned on the way.
    """
    found = []
    for tall, wide in product(heights(rows, experts), widths(width)):
        if dot_bytes(tall, depth, wide, dtypes, transposed) <= vmem:
            alone = chunk_of(wide, depth)
            moved = padded_bytes(tall, depth, dtypes[0]) + padded_bytes(depth, alone, dtypes[0])
            moved += sum(padded_bytes(tall, alone, dtype) for dtype in dtypes[1:])
            visits = -(-rows // tall) + experts - 1
            lost = LOST * visits * depth * width / PRODUCTS
            cost = STEP * -(-width // wide) * visits + lost + moved / BYTES
            found.append((cost, (wide, *rests(tall))))
    return min(found)[1] if found else ()


def gathered_tile(
    rows: int,
    depth: int,
    width: int,
    experts: int,
    dtypes: tuple[str, ...],
    vmem: int,
    transposed: bool = False,
) -> tuple[int, ...]:
    """The tile of `gathered_dot_tpu`, as `dot_tile`: weights pass once for each visit here.

    What of that takes longer than the products is seen.
    """
    found = []
    for tall, wide in product(heights(rows, experts), widths(width)):
        if gathered_bytes(tall, depth, wide, dtypes, transposed) <= vmem:
            block = padded_bytes(depth, wide, dtypes[0])
            moved = block + sum(padded_bytes(tall, wide, dtype) for dtype in dtypes[1:])
            steps = -(-width // wide) * max(-(-rows // tall), experts)
            unhidden = max(0, steps * block / BYTES - rows * depth * width / PRODUCTS)
            found.append((STEP * steps + moved / BYTES + unhidden, (wide, *rests(tall))))
    return min(found)[1] if found else ()


def outer_tile(
    rows: int, depth: int, width: int, experts: int, dtype: str, vmem: int
) -> tuple[int, ...]:
    """The tile of `grouped_outer_tpu`: both widths, then heights; empty if none fits."""
    found = []
    talls = [tall for tall in heights(rows, experts) if tall >= LEAST_SUMMED] or [LEAST_SUMMED]
    for tall, deep, wide in product(talls, widths(depth), widths(width)):
        if outer_bytes(tall, deep, wide, dtype) <= vmem:
            moved = padded_bytes(tall, deep, dtype) + padded_bytes(tall, wide, dtype)
            moved += padded_bytes(deep, wide, dtype)
            steps = -(-depth // deep) * -(-width // wide) * max(-(-rows // tall), experts)
            cost = STEP * steps + moved / BYTES
            found.append((cost, (deep, wide, *parts(tall, LEAST_SUMMED))))
    return min(found)[1] if found else ()


def heights(rows: int, experts: int) -> list[int]:
    """Heights of a tile to try: up to the mean load of an expert, the tallest first."""
    mean = max(rows // experts, LEAST)
    powers = [TALLEST >> i for i in range(TALLEST.bit_length()) if TALLEST >> i >= LEAST]
    return [h for h in powers if h <= 2 * mean]


def parts(tall: int, least: int = LEAST) -> tuple[int, ...]:
    """The heights that a visit of a tile may compute: halves, down to what is worth a branch."""
    return tuple(tall >> i for i in range(tall.bit_length()) if tall >> i >= least)


def rests(tall: int) -> tuple[int, ...]:
    """The heights that a visit of a product may compute: halves, and three between each two.

    All are multiples of 16, a register's rows of bf16.
    """
    between = [tall * i >> n for n in range(1, tall.bit_length()) for i in (8, 7, 6, 5)]
    found = [h >> 3 for h in between]
    return (tall, *sorted({h for h in found if h >= 16 and h % 16 == 0}, reverse=True))


def widths(width: int) -> list[int]:
    """Columns of a block to try: equal parts of the whole, in whole lanes, or the whole."""
    if width % LANES:
        return [width]
    lanes = width // LANES
    return [width // n for n in range(1, lanes + 1) if lanes % n == 0]
