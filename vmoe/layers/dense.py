"""A dense layer over one or several feature dims."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vmoe.layers.params import Initializer, Params, draw_kernel, named_key, zeros


def init_dense(
    key: jax.Array,
    inputs: Sequence[int],
    outputs: Sequence[int],
    kernel: Initializer,
    bias: Initializer = zeros,
) -> Params:
    """Returns kernel f32[*inputs, *outputs] and bias f32[*outputs]."""
    return {
        "kernel": draw_kernel(kernel, named_key(key, "kernel"), inputs, outputs),
        "bias": bias(named_key(key, "bias"), tuple(outputs)),
    }


def dense(params: Params, x: jax.Array, dims: int = 1) -> jax.Array:
    """Contracts the last `dims` dims of x with the first ones of the kernel and adds the bias.

    The product and the result have x's dtype; f32 parameters are converted for it.
    """
    kernel, bias = (params[name].astype(x.dtype) for name in ("kernel", "bias"))
    return jnp.tensordot(x, kernel, axes=dims) + bias
