"""Grouped products by blocks of rows: each block belongs to one expert.

Rows of an expert start at a multiple of the block, so a block needs one weight matrix.
The number of FLOPs is that of the rows, whatever the routing. Good on CPUs, where XLA
computes `ragged_dot` as E dense products.
"""

import jax
import jax.numpy as jnp


def block_experts(sizes: jax.Array, rows: int, block: int) -> jax.Array:
    """The expert of each block of rows; E for blocks past the last expert's rows."""
    return jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(0, rows, block), side="right")


def per_row(values: jax.Array, sizes: jax.Array, rows: int) -> jax.Array:
    """Each row's copy of its expert's values [E, ...]: [rows, ...]."""
    return values[block_experts(sizes, rows, 1)]


def grouped_dot_blocks(
    spec: str, rows: jax.Array, weights: jax.Array, sizes: jax.Array, block: int
) -> jax.Array:
    """Rows [N, ...] times the weights [E, ...] of their expert; `spec` is for one block."""
    experts = block_experts(sizes, rows.shape[0], block)
    blocks = rows.reshape(-1, block, *rows.shape[1:])

    def product(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        one, expert = args
        made: jax.Array = jnp.einsum(spec, one, weights[expert])
        return made

    out: jax.Array = jax.lax.map(product, (blocks, experts))
    return out.reshape(rows.shape[0], *out.shape[2:])


def grouped_outer_blocks(
    spec: str, a: jax.Array, b: jax.Array, sizes: jax.Array, block: int, shape: tuple[int, ...]
) -> jax.Array:
    """Per expert, the sum over its rows of products of a[N, ...] and b[N, ...]: [E, ...]."""
    accumulate = jnp.promote_types(a.dtype, jnp.float32)
    experts = block_experts(sizes, a.shape[0], block)
    blocks_a = a.reshape(-1, block, *a.shape[1:])
    blocks_b = b.reshape(-1, block, *b.shape[1:])

    def add(total: jax.Array, args: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        one_a, one_b, expert = args
        part = jnp.einsum(spec, one_a, one_b, preferred_element_type=accumulate)
        return total.at[expert].add(part, mode="drop"), None

    total, _ = jax.lax.scan(add, jnp.zeros(shape, accumulate), (blocks_a, blocks_b, experts))
    return total.astype(a.dtype)


def grouped_sum(a: jax.Array, sizes: jax.Array, block: int) -> jax.Array:
    """Per expert, the sum of its rows: [N, ...] to [E, ...]."""
    experts = block_experts(sizes, a.shape[0], block)
    accumulate = jnp.promote_types(a.dtype, jnp.float32)
    blocks = a.reshape(-1, block, *a.shape[1:]).sum(axis=1, dtype=accumulate)
    empty = jnp.zeros((sizes.shape[0], *a.shape[1:]), accumulate)
    return empty.at[experts].add(blocks, mode="drop").astype(a.dtype)
