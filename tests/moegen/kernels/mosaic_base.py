"""What the kernels by Mosaic GPU have to do besides `grouped_base`: an epilogue of any operands."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.moegen.kernels.grouped_base import close, random

EXPERTS = 3
DTYPES = (jnp.bfloat16, jnp.float32)


def struct(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def bent(acc, by_row, by_column, one, both):
    h = acc + by_column
    return jax.nn.gelu(h) * by_row + both, h * jax.nn.sigmoid(one * h)


def shapes(tall, depth, width):
    """Of rows and weights, and of all that `bent` reads: three tiles of rows."""
    n = 3 * tall
    return (n, depth), (EXPERTS, depth, width), (n, 1), (1, width), (1, 1), (n, width)


def check_epilogue(fused, tall, depth, width):
    """A kernel with `bent`: one tile of the first expert and one of the last, the third of none."""
    given = [
        jnp.asarray(random(i, *s), jnp.bfloat16) for i, s in enumerate(shapes(tall, depth, width))
    ]
    first, second = fused(*given[:2], jnp.asarray([tall, 0, tall]), *given[2:], interpret=True)
    owned = 2 * tall
    x, w = (np.asarray(a, np.float32) for a in given[:2])
    acc = np.concatenate([x[:tall] @ w[0], x[tall:owned] @ w[2]])
    read = [np.asarray(a, np.float32)[: owned if a.shape[0] > 1 else 1] for a in given[2:]]
    want = bent(acc, *read)
    close(first[:owned], want[0], "bfloat16")
    close(second[:owned], want[1], "float32")
    assert not np.asarray(first[owned:], np.float32).any()
