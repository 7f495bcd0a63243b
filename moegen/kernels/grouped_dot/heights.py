"""How many rows of its tile a visit computes: all, or parts of a few heights."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl


def compute_heights(
    needed: Any, low: Any, all_: Any, heights: tuple[int, ...], compute: Callable[..., None]
) -> None:
    """Runs `compute(height, first row, whether rows of others may be among them)` over the rows.

    Parts of the second height follow each other, then one of the least height that holds the rest.

    Args:
      needed: rows from `low` on; nothing runs for none.
      low: the first row, a multiple of 16.
      all_: whether the whole tile is computed in one piece.
      heights: that of a tile, then those of its parts, falling.
      compute: for a static height. A part that would leave the tile starts earlier.
    """
    tall, *rest = heights
    most, *less = rest or heights
    fewer = less[0] if less else 0
    left = jax.lax.rem(needed, most)
    count = jax.lax.div(needed, most) + (left > fewer).astype(jnp.int32)

    def part(height: int, at: Any) -> None:
        compute(height, pl.multiple_of(jnp.minimum(at, tall - height), 16), True)

    def one(i: Any, _: None) -> None:
        part(most, low + i * most)

    @pl.when(jnp.logical_not(all_))
    def _() -> None:
        jax.lax.fori_loop(0, count, one, None)
        for height, lower in zip(less, (*less[1:], 0), strict=False):
            fits = (lower < left) & (left <= height)
            pl.when(fits)(functools.partial(part, height, low + count * most))

    pl.when(all_)(functools.partial(compute, tall, 0, False))


def whole_is_best(needed: Any, heights: tuple[int, ...]) -> Any:
    """Whether parts for so many rows from the tile's first on would be as many as all rows."""
    tall, most, less = (*heights, 0, 0)[:3]
    return needed > tall - (most - less)
