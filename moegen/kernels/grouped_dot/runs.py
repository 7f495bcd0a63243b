"""Work on runs: the rows of one expert, about a mean load or more of them at a time.

Rows of an expert start at a multiple of the block. Shapes are static and loads are not, so there is
one loop per number of blocks, over the runs that are just as long: a load up to about the mean is
one run, a larger one is cut into few, an expert without rows costs nothing. A dense product for
many rows runs at the speed of a dense layer and reads its weights once, where `blocks` reads them
for every block; padding is the same. Several products can share a loop: rows then stay in the cache
from one to the next, and what only the next one reads is never written to memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def run_lengths(blocks: int, experts: int) -> list[int]:
    """Blocks of the runs there can be: every number up to about the mean load, then doubled."""
    most = min(blocks, blocks // experts + 1, 16)  # each length is compiled
    lengths = list(range(1, most + 1))
    while lengths[-1] * 2 <= blocks:
        lengths.append(lengths[-1] * 2)
    return lengths


def runs_of_blocks(sizes: jax.Array, lengths: list[int]) -> tuple[jax.Array, ...]:
    """Cuts the blocks of each expert, i32[E], into runs of these lengths, as few as can be.

    Returns, each [length, E]: the number of runs, the first one's first block, and whether the
    expert has no shorter run. Only of the longest there can be several.
    """
    rest, counts = sizes, []
    for length in reversed(lengths):
        counts.append(rest // length)
        rest = rest % length
    count = jnp.stack(counts[::-1])
    blocks = count * jnp.asarray(lengths, sizes.dtype)[:, None]
    start = jnp.cumsum(sizes) - sizes + jnp.cumsum(blocks, axis=0) - blocks
    return count, start, jnp.cumsum(count, axis=0) == count


def over_runs(
    work: Callable[..., tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]],
    sizes: jax.Array,
    block: int,
    rows: tuple[jax.Array, ...],
    experts: tuple[jax.Array, ...],
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Does the work for each run of one expert's rows.

    Args:
      work: takes the run's part of each of `rows`, then the expert's of each of `experts`; returns
        what it made for the rows, and what it made for the expert, to be summed over its runs.
      sizes: i32[E], rows of each expert, multiples of the block.
      block: where an expert's rows may start.
      rows: arrays [N, ...], sorted by expert.
      experts: arrays [E, ...].

    Returns:
      Arrays [N, ...], 0 for rows that no expert has, and arrays [E, ...].
    """
    like = jax.eval_shape(work, *(a[:block] for a in rows), *(a[0] for a in experts))
    made = [jnp.zeros((rows[0].shape[0], *a.shape[1:]), a.dtype) for a in like[0]]
    summed = [jnp.zeros((sizes.shape[0], *a.shape), a.dtype) for a in like[1]]
    out = tuple(as_bits(a) for a in (*made, *summed))
    lengths = run_lengths(rows[0].shape[0] // block, sizes.shape[0])
    count, start, unbroken = runs_of_blocks(sizes // block, lengths)

    for n in range(len(lengths)):

        def one(i: jax.Array, out: tuple[jax.Array, ...], n: int = n) -> tuple[jax.Array, ...]:
            ends = jnp.cumsum(count[n])
            e = jnp.minimum(jnp.sum(i >= ends), sizes.shape[0] - 1)
            number = i - (ends - count[n])[e]
            at = (start[n, e] + number * lengths[n]) * block
            # XLA on CPU would widen all weights in bfloat16 before the loop; now it widens slices.
            all_rows, all_experts, e = jax.lax.optimization_barrier((rows, experts, e))
            mine = [jax.lax.dynamic_slice_in_dim(a, at, lengths[n] * block) for a in all_rows]
            its = [jax.lax.dynamic_index_in_dim(a, e, keepdims=False) for a in all_experts]
            new, more = work(*mine, *its)
            first = None if lengths[n] + 1 in lengths else unbroken[n, e] & (number == 0)
            old, totals = out[: len(new)], out[len(new) :]
            return (
                *(put_rows(a, b, at) for a, b in zip(old, new, strict=True)),
                *(add_to(a, b, e, first) for a, b in zip(totals, more, strict=True)),
            )

        out = jax.lax.fori_loop(0, jnp.sum(count[n]), one, out)
    done = [from_bits(a, b.dtype) for a, b in zip(out, (*made, *summed), strict=True)]
    return tuple(done[: len(made)]), tuple(done[len(made) :])


def put_rows(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    """The rows with new ones from `at` on."""
    updated: jax.Array = jax.lax.dynamic_update_slice_in_dim(old, as_bits(new), at, 0)
    return updated


def add_to(
    totals: jax.Array, part: jax.Array, expert: jax.Array, first: jax.Array | None
) -> jax.Array:
    """The totals [E, ...] with one expert's part added, or set by the first one; None: it is."""
    if first is not None:
        before = from_bits(jax.lax.dynamic_index_in_dim(totals, expert, keepdims=False), part.dtype)
        wide = jnp.promote_types(part.dtype, jnp.float32)
        added = (before.astype(wide) + part.astype(wide)).astype(part.dtype)
        part = jnp.where(first, part, added)
    updated: jax.Array = jax.lax.dynamic_update_index_in_dim(totals, as_bits(part), expert, 0)
    return updated


def as_bits(a: jax.Array) -> jax.Array:
    """An array as it is best updated: before jax 0.12, bfloat16 as uint16.

    XLA on CPU widened all of an array to float32, and narrowed it again, to update a part of it.
    """
    if a.dtype == jnp.bfloat16 and jax.__version_info__ < (0, 12):
        return jax.lax.bitcast_convert_type(a, jnp.uint16)
    return a


def from_bits(a: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The array that `as_bits` was given."""
    return a if a.dtype == dtype else jax.lax.bitcast_convert_type(a, dtype)


def outer(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Products of a[N, ...] and b[N, ...] summed over the rows, in their dtype.

    XLA on CPU widens both operands in bfloat16, unless the left one is laid out with its rows last.
    """
    wide = jnp.promote_types(a.dtype, jnp.float32)
    if a.dtype == jnp.bfloat16 and a.ndim == b.ndim == 2:
        terms, result = spec.split("->")
        left, right = (a, b) if result[0] in terms.split(",")[0] else (b, a)
        turned = with_layout_constraint(left.T, Layout(major_to_minor=(0, 1)))
        return jnp.matmul(turned, right, preferred_element_type=wide).astype(a.dtype)
    return jnp.einsum(spec, a, b, preferred_element_type=wide).astype(a.dtype)


def grouped_dot_runs(
    spec: str, rows: jax.Array, weights: jax.Array, sizes: jax.Array, block: int
) -> jax.Array:
    """Rows [N, ...] times the weights [E, ...] of their expert; `spec` is for one expert."""

    def work(a: jax.Array, w: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        return (jnp.einsum(spec, a, w),), ()

    ((made,), _) = over_runs(work, sizes, block, (rows,), (weights,))
    return made


def grouped_outer_runs(
    spec: str, a: jax.Array, b: jax.Array, sizes: jax.Array, block: int, shape: tuple[int, ...]
) -> jax.Array:
    """Per expert, the sum over its rows of products of a[N, ...] and b[N, ...]: [E, ...]."""

    def work(a: jax.Array, b: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        return (), (outer(spec, a, b),)

    _, (made,) = over_runs(work, sizes, block, (a, b), ())
    return made
