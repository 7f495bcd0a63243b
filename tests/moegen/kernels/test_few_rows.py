"""kernels/few_rows.py: weights as the left operand change nothing but the time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moegen.kernels.few_rows import dot_weights_left


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_batched_product(dtype):
    keys = jax.random.split(jax.random.key(0))
    rows = jax.random.normal(keys[0], (3, 2, 5, 8), dtype)
    weights = jax.random.normal(keys[1], (3, 6, 8), dtype)
    found = jax.jit(dot_weights_left)(rows, weights)
    assert found.dtype == jnp.dtype(dtype)
    wide = [np.asarray(a, np.float64) for a in (rows, weights)]
    expected = np.einsum("egcd,efd->egcf", *wide)
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, atol=1e-5 if dtype == "float32" else 0.05
    )
