"""Bytes of VMEM that the TPU kernels of grouped products take, for a tile."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def weights_held() -> int:
    """Blocks of weights that `grouped_dot_tpu` holds at once: one computed, the others coming."""
    return 4  # no constant: emitted modules have functions only


def dot_bytes(
    tall: int,
    depth: int,
    wide: int,
    dtypes: Sequence[jax.typing.DTypeLike],
    transposed: bool,
    held: int | None = None,
) -> int:
    """Of `grouped_dot_tpu`: weights held; other blocks twice, and rows again for parts of a tile.

    And weights again if transposed, and the product and all that the epilogue reads and gives,
    in f32.

    Args:
      tall: rows of a tile.
      depth: the width that is summed over.
      wide: columns of a block.
      dtypes: of the rows, then of every operand and result with the product's shape.
      transposed: whether weights are turned on the way.
      held: blocks of weights, `weights_held()` if not given.
    """
    rows, weights = padded_bytes(tall, depth, dtypes[0]), padded_bytes(depth, wide, dtypes[0])
    blocks = rows + sum(padded_bytes(tall, wide, dtype) for dtype in dtypes[1:])
    values = len(dtypes) * padded_bytes(tall, wide, jnp.float32)
    weights *= (held or weights_held()) + (1 if transposed else 0)
    return weights + 2 * blocks + rows + values


def gathered_bytes(
    tall: int,
    depth: int,
    wide: int,
    dtypes: Sequence[jax.typing.DTypeLike],
    transposed: bool,
) -> int:
    """Of `gathered_dot_tpu`: as `dot_bytes`, with rows in words of 32 bits twice, and unpacked."""
    plain = dot_bytes(tall, depth, wide, dtypes, transposed, 2)
    if jnp.dtype(dtypes[0]).itemsize == 4:
        return plain
    words, shifts = padded_bytes(tall, depth, jnp.int32), padded_bytes(tall, 1, jnp.int32)
    return plain + words + 2 * shifts + words


def outer_bytes(tall: int, deep: int, wide: int, dtype: jax.typing.DTypeLike) -> int:
    """Of `grouped_outer_tpu`: blocks twice, the total and a product in f32, rows turned once."""
    rows = padded_bytes(tall, deep, dtype)
    blocks = rows + padded_bytes(tall, wide, dtype) + padded_bytes(deep, wide, dtype)
    return 2 * blocks + 2 * padded_bytes(deep, wide, jnp.float32) + 2 * rows


def padded_bytes(rows: int, columns: int, dtype: jax.typing.DTypeLike) -> int:
    """Bytes of a block in whole registers."""
    return -(-rows // 16) * 16 * -(-columns // 128) * 128 * jnp.dtype(dtype).itemsize
