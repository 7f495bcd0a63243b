"""Which tile a TPU kernel takes for a product, and why it cannot run one.

A step costs about 300 cycles beside its products, and the first weights and the last result are
moved with nothing to hide behind: tiles are as large as keeps both small. On a v5e with D=1024 and
an even load, 512 rows by 2048 columns are the best (docs/kernels.md).
"""

from moegen.kernels.grouped_dot.visits import padded_bytes

LANES = 128
TALLEST = 512
LEAST = 32
WIDEST = 2048


def dot_tile(
    rows: int, depth: int, width: int, experts: int, dtypes: tuple[str, ...], vmem: int
) -> tuple[int, ...]:
    """The tile of `grouped_dot_tpu`: columns, then heights; empty if none fits.

    Args:
      rows: N.
      depth: the width that is summed over.
      width: of the result.
      experts: E.
      dtypes: of the rows, then of every operand and result of the epilogue that has a row for
        each row; the product's if there is no epilogue.
      vmem: bytes that the blocks may take.
    """
    for tall in heights(rows, experts):
        for wide in widths(width):
            blocks = [((tall, depth), dtypes[0]), ((depth, wide), dtypes[0])]
            blocks += [((tall, wide), dtype) for dtype in dtypes[1:]]
            if 2 * padded_bytes(blocks) + padded_bytes([((tall, wide), "float32")] * 2) <= vmem:
                return (wide, *parts(tall))
    return ()


def outer_tile(
    rows: int, depth: int, width: int, experts: int, dtype: str, vmem: int
) -> tuple[int, ...]:
    """The tile of `grouped_outer_tpu`: both widths, then heights; empty if none fits."""
    for tall in heights(rows, experts):
        for deep, wide in ((d, w) for w in widths(width) for d in widths(depth)):
            blocks = [((tall, deep), dtype), ((tall, wide), dtype), ((deep, wide), dtype)]
            if 2 * padded_bytes(blocks) + padded_bytes([((deep, wide), "float32")] * 2) <= vmem:
                return (deep, wide, *parts(tall))
    return ()


def heights(rows: int, experts: int) -> list[int]:
    """Heights of a tile to try: up to the mean load of an expert, the tallest first."""
    mean = max(rows // experts, LEAST)
    powers = [TALLEST >> i for i in range(TALLEST.bit_length()) if TALLEST >> i >= LEAST]
    return [h for h in powers if h <= 2 * mean]


def parts(tall: int) -> tuple[int, ...]:
    """The heights that a visit of a tile may compute: halves, down to what is worth a branch."""
    return tuple(tall >> i for i in range(tall.bit_length()) if tall >> i >= LEAST)


def widths(width: int) -> list[int]:
    """Columns of a block to try, the widest first: equal parts of the whole, in whole lanes.

    Narrower ones than the lanes are not blocks, so a width that is no multiple is taken whole.
    """
    if width % LANES and width <= WIDEST:
        return [width]
    lanes = -(-width // LANES)
    counts = range(max(1, -(-width // WIDEST)), lanes + 1)
    return list(dict.fromkeys(-(-lanes // n) * LANES for n in counts))
