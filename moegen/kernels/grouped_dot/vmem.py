"""Bytes of VMEM that the TPU kernels of grouped products take, for a tile."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def dot_bytes(
    tall: int,
    depth: int,
    wide: int,
    dtypes: Sequence[jax.typing.DTypeLike],
    transposed: bool,
) -> int:
    """Of `grouped_dot_tpu`: blocks twice; rows again for parts of a tile, weights if transposed.

    And the product and all that the epilogue reads and gives, in f32.

    Args:
      tall: rows of a tile.
      depth: the width that is summed over.
      wide: columns of a block.
      dtypes: of the rows, then of every operand and result with the product's shape.
      transposed: whether weights are turned on the way.
    """
    rows, weights = padded_bytes(tall, depth, dtypes[0]), padded_bytes(depth, wide, dtypes[0])
    blocks = rows + weights + sum(padded_bytes(tall, wide, dtype) for dtype in dtypes[1:])
    values = len(dtypes) * padded_bytes(tall, wide, jnp.float32)
    return 2 * blocks + rows + values + (weights if transposed else 0)


def gathered_bytes(
    tall: int,
    depth: int,
    wide: int,
    dtypes: Sequence[jax.typing.DTypeLike],
    transposed: bool,
) -> int:
    """Of `gathered_dot_tpu`: as `dot_bytes`, with rows in words of 32 bits twice, and unpacked."""
    held = dot_bytes(tall, depth, wide, dtypes, transposed)
    if jnp.dtype(dtypes[0]).itemsize == 4:
        return held
    words, shifts = padded_bytes(tall, depth, jnp.int32), padded_bytes(tall, 1, jnp.int32)
    return held + words + 2 * shifts + words


def outer_bytes(tall: int, deep: int, wide: int, dtype: jax.typing.DTypeLike) -> int:
    """Of `grouped_outer_tpu`: blocks twice, the total and a product in f32, rows turned once."""
    rows = padded_bytes(tall, deep, dtype)
    blocks = rows + padded_bytes(tall, wide, dtype) + padded_bytes(deep, wide, dtype)
    return 2 * blocks + 2 * padded_bytes(deep, wide, jnp.float32) + 2 * rows


def padded_bytes(rows: int, columns: int, dtype: jax.typing.DTypeLike) -> int:
    """Bytes of a block in whole registers."""
    return -(-rows // 16) * 16 * -(-columns // 128) * 128 * jnp.dtype(dtype).itemsize
