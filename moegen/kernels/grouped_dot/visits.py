"""Which rows each step of a grouped kernel works on, computed from the rows of each expert."""

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
    experts = sizes.shape[0]
    group = jnp.arange(experts + 1, dtype=jnp.int32)
    ends = jnp.where(group < experts, sums(sizes, group[:, None] >= group[:-1]), rows)
    starts = sums(sizes, group[:, None] > group[:-1])
    return visit_groups(starts, ends, rows, tall)


def tile_visits(
    sizes: jax.Array, rows: int, tall: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """As `row_visits`; before the count, each visit's tile's first visit and number of visits."""
    tile, owner, first, past, count = row_visits(sizes, rows, tall)
    listed = jnp.arange(tile.shape[0]) < count
    lead = sums(listed.astype(jnp.int32), tile[:, None] > tile)
    many = sums(listed.astype(jnp.int32), tile[:, None] == tile)
    return tile, owner, first, past, lead, many, count


def visit_groups(
    starts: jax.Array, ends: jax.Array, rows: int, tall: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """The visits of groups with these first and last rows; a group without rows has none.

    All of it is comparisons and sums over few groups: XLA makes a few small loops of them, where
    cumulative sums and gathers would each be one or more.
    """
    tiles, groups = -(-rows // tall), starts.shape[0]
    group = jnp.arange(groups, dtype=jnp.int32)
    visit = jnp.arange(tiles + groups - 1, dtype=jnp.int32)
    lead = jax.lax.div(starts, tall)
    count = jnp.where(ends > starts, jax.lax.div(ends - 1, tall) - lead + 1, 0)
    before = sums(count, group[:, None] > group)
    after = sums(count, group[:, None] >= group)
    mine = (visit[:, None] >= before) & (visit[:, None] < after)
    tile = jnp.minimum(visit + sums(lead - before, mine), tiles - 1)
    first = jnp.clip(sums(starts, mine) - tile * tall, 0, tall)
    past = jnp.clip(sums(ends, mine) - tile * tall, 0, tall)
    return tile, sums(group, mine), first, past, jnp.sum(count, dtype=jnp.int32)


def sums(values: jax.Array, where: jax.Array) -> jax.Array:
    """For each row of a mask, the sum of the values it lets through."""
    return jnp.sum(jnp.where(where, values, 0), axis=1, dtype=jnp.int32)
