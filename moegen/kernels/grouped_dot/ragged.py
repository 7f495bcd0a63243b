"""Grouped products by XLA's ragged dot, for targets that run it as more than dense products."""

import jax


def grouped_dot_ragged(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows [N, D] times weights [E, D, F] of their expert: [N, F]."""
    return jax.lax.ragged_dot(rows, weights, sizes)


def grouped_outer_ragged(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
    """Per expert, the sum over its rows of a[N, D] times b[N, F]: [E, D, F]."""
    dims = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return jax.lax.ragged_dot_general(a, b, sizes, dims)
