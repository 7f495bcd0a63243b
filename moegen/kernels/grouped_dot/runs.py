"""Grouped products by runs of blocks: one dense product for up to a mean load of rows at a time.

Rows of an expert start at a multiple of the block. Shapes are static and loads are not, so there is
one loop per number of blocks, over the runs that are just as long: a load near the mean is a
single product, a larger one is cut, an expert without rows costs nothing. A dense product for many
rows runs at the speed of a dense layer and reads its weights once, where `blocks` reads them for
every block; padding is the same.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def runs_of_blocks(sizes: jax.Array, longest: int, most: int) -> tuple[jax.Array, ...]:
    """Cuts the blocks of each expert into runs and orders these by length.

    Args:
      sizes: i32[E], blocks of each expert; they follow each other.
      longest: blocks in the longest run.
      most: number of runs there can be.

    Returns:
      For each run, the shortest first: its expert, its first block, and whether it is the first
      of its expert; then for each length 0.. the number of the first run that is longer.
    """
    counts = -(-sizes // longest)
    ends = jnp.cumsum(counts)
    run = jnp.arange(most)
    expert = jnp.minimum(jnp.sum(run[:, None] >= ends, axis=1), sizes.shape[0] - 1)
    done = (run - (ends - counts)[expert]) * longest
    length = jnp.where(run < ends[-1], jnp.clip(sizes[expert] - done, 0, longest), 0)
    start = (jnp.cumsum(sizes) - sizes)[expert] + done
    order = jnp.argsort(length, stable=True)
    # The one run of an expert that may be short comes before its long ones.
    fresh = jnp.where(sizes[expert] % longest > 0, length < longest, done == 0)
    bounds = jnp.sum(length[:, None] <= jnp.arange(longest + 1), axis=0)
    return expert[order], start[order], fresh[order], bounds


def over_runs(
    sizes: jax.Array, rows: int, block: int, work: Callable[..., jax.Array], out: jax.Array
) -> jax.Array:
    """Runs `out = work(out, rows, first row, expert, fresh)` for each run; returns the last `out`.

    `rows` is the static number of rows of the run; `fresh` says that no run of the expert came
    before it, and is None where none ever does.
    """
    experts = sizes.shape[0]
    longest = min(rows // block, rows // (experts * block) + 1, 16)  # each length is compiled
    most = experts + rows // (longest * block)
    expert, start, fresh, bounds = runs_of_blocks(sizes // block, longest, most)
    for length in range(1, longest + 1):

        def one(i: jax.Array, out: jax.Array, length: int = length) -> jax.Array:
            first = fresh[i] if length == longest else None
            return work(out, length * block, start[i] * block, expert[i], first)

        out = jax.lax.fori_loop(bounds[length - 1], bounds[length], one, out)
    return out


def grouped_dot_runs(
    spec: str, rows: jax.Array, weights: jax.Array, sizes: jax.Array, block: int
) -> jax.Array:
    """Rows [N, ...] times the weights [E, ...] of their expert; `spec` is for one expert."""

    def work(
        out: jax.Array, length: int, at: jax.Array, expert: jax.Array, fresh: jax.Array | None
    ) -> jax.Array:
        one = jax.lax.dynamic_slice_in_dim(rows, at, length)
        product = jnp.einsum(spec, one, weights[expert])
        return jax.lax.dynamic_update_slice_in_dim(out, product, at, 0)

    made = jax.eval_shape(lambda a, b: jnp.einsum(spec, a, b), rows, weights[0])
    empty = jnp.zeros(made.shape, made.dtype)
    return over_runs(sizes, rows.shape[0], block, work, empty)


def grouped_outer_runs(
    spec: str, a: jax.Array, b: jax.Array, sizes: jax.Array, block: int, shape: tuple[int, ...]
) -> jax.Array:
    """Per expert, the sum over its rows of products of a[N, ...] and b[N, ...]: [E, ...]."""

    def work(
        out: jax.Array, length: int, at: jax.Array, expert: jax.Array, fresh: jax.Array | None
    ) -> jax.Array:
        one_a = jax.lax.dynamic_slice_in_dim(a, at, length)
        one_b = jax.lax.dynamic_slice_in_dim(b, at, length)
        product = jnp.einsum(spec, one_a, one_b, preferred_element_type=out.dtype)
        if fresh is not None:
            product = jnp.where(fresh, product, out[expert] + product)
        updated: jax.Array = jax.lax.dynamic_update_index_in_dim(out, product, expert, 0)
        return updated

    empty = jnp.zeros(shape, jnp.promote_types(a.dtype, jnp.float32))
    return over_runs(sizes, a.shape[0], block, work, empty).astype(a.dtype)
