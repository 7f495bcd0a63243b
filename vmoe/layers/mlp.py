"""The transformer's MLP: dense, tanh-GELU, dense."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmoe.layers.dense import dense, init_dense
from vmoe.layers.dropout import dropout
from vmoe.layers.params import Params, named_key, xavier_uniform

_small_normal = jax.nn.initializers.normal(1e-6)


def init_mlp(key: jax.Array, width: int, hidden: int) -> Params:
    """Returns Dense_0 [width, hidden] and Dense_1 [hidden, width] with biases."""
    return {
        name: init_dense(named_key(key, name), *shape, xavier_uniform, _small_normal)
        for name, shape in (
            ("Dense_0", ((width,), (hidden,))),
            ("Dense_1", ((hidden,), (width,))),
        )
    }


def gelu(x: jax.Array) -> jax.Array:
    """The tanh form of GELU, computed in f32 (bf16 is slower on a CPU, and coarser).

    Source: arXiv:1606.08415.
    """
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def mlp(
    params: Params, x: jax.Array, *, rate: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """Maps x [..., D] to [..., D]; dropout at `rate` after the GELU and after the last layer."""
    hidden = dropout(gelu(dense(params["Dense_0"], x)), rate, named_key(key, "hidden"))
    return dropout(dense(params["Dense_1"], hidden), rate, named_key(key, "output"))
