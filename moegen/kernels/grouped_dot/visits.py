"""Which rows each step of a grouped kernel works on, computed from the rows of each expert."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def row_visits(
    sizes: jax.Array, rows: int, tall: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Lists for every tile of `tall` rows the experts that own some of them, in order.

    Experts without rows are in no visit. The rows that no expert owns have visits of their own,
    so that zeros can be written there.

    Args:
      sizes: i32[E], rows of each expert; they follow each other.
      rows: of all experts and of none, static.
      tall: rows of a tile; the last tile may have fewer.

    Returns:
      For each visit i32[V]: its tile, its expert (E: of none), and the first row in the tile and
      the one past the last that are the expert's; and how many of the V there are.
    """
    sizes = sizes.astype(jnp.int32)
    owned = jnp.concatenate([sizes, rows - jnp.sum(sizes, keepdims=True, dtype=jnp.int32)])
    ends = jnp.cumsum(owned)
    tiles = jnp.where(owned > 0, (ends - 1) // tall - (ends - owned) // tall + 1, 0)
    return visit_groups(owned, tiles, -(-rows // tall) + sizes.shape[0], tall)


def expert_visits(
    sizes: jax.Array, rows: int, tall: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `row_visits`, for a result per expert: an expert without rows has a visit of no rows.

    Rows of none have no visit.
    """
    sizes = sizes.astype(jnp.int32)
    ends = jnp.cumsum(sizes)
    tiles = jnp.where(sizes > 0, (ends - 1) // tall - (ends - sizes) // tall + 1, 1)
    return visit_groups(sizes, tiles, -(-rows // tall) + 2 * sizes.shape[0] - 1, tall)


def visit_groups(
    sizes: jax.Array, tiles: jax.Array, most: int, tall: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The visits of groups of `sizes` rows that lie in `tiles` tiles each.

    Sums over comparisons take the place of gathers, which are slow on TPUs for so few elements.
    """
    groups, visit = sizes.shape[0], jnp.arange(most, dtype=jnp.int32)
    last = jnp.cumsum(tiles)
    group = jnp.minimum(jnp.sum(visit[:, None] >= last, axis=1, dtype=jnp.int32), groups - 1)
    mine = group[:, None] == jnp.arange(groups, dtype=jnp.int32)

    def of_mine(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mine, values, 0), axis=1, dtype=jnp.int32)

    ends = jnp.cumsum(sizes)
    start, end = of_mine(ends - sizes), of_mine(ends)
    highest = jnp.maximum(jnp.sum(sizes) - 1, 0) // tall  # no visit reads a tile past the rows
    tile = jnp.minimum(start // tall + visit - of_mine(last - tiles), highest)
    first, past = jnp.clip(start - tile * tall, 0, tall), jnp.clip(end - tile * tall, 0, tall)
    return tile, group, first, past, last[-1]


def padded_bytes(blocks: Sequence[tuple[tuple[int, int], jax.typing.DTypeLike]]) -> int:
    """Bytes of VMEM that blocks of these shapes and dtypes take, in whole registers."""
    sizes = [(-(-m // 16) * 16 * -(-n // 128) * 128, dtype) for (m, n), dtype in blocks]
    return sum(elements * jnp.dtype(dtype).itemsize for elements, dtype in sizes)
