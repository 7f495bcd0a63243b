"""From encoded tokens to logits: pooling, the optional representation layer, the classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmoe.layers.attention import attention, init_attention
from vmoe.layers.dense import dense, init_dense
from vmoe.layers.mlp import init_mlp, mlp
from vmoe.layers.norm import init_layer_norm, layer_norm
from vmoe.layers.params import Params, lecun_normal, named_key, xavier_uniform, zeros


def init_map_head(
    key: jax.Array, width: int, heads: int, hidden: int, *, qk_norm: bool = False
) -> Params:
    """Returns probe [1, 1, width], the attention, LayerNorm and Mlp of attention pooling."""
    name = "MultiHeadDotProductAttention"
    return {
        "probe": xavier_uniform(named_key(key, "probe"), (1, 1, width)),
        name: init_attention(named_key(key, name), width, heads, qk_norm=qk_norm),
        "LayerNorm": init_layer_norm(width),
        "Mlp": init_mlp(named_key(key, "Mlp"), width, hidden),
    }


def map_head(params: Params, x: jax.Array) -> jax.Array:
    """Pools tokens [B, T, D] to [B, D]: a learned probe attends to them, then x + MLP(LN x).

    Source: arXiv:2106.04560, section 3.2.
    """
    probe = jnp.broadcast_to(params["probe"].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    pooled = attention(params["MultiHeadDotProductAttention"], probe, x)
    return (pooled + mlp(params["Mlp"], layer_norm(params["LayerNorm"], pooled)))[:, 0]


def pool(head: str, params: Params, x: jax.Array) -> jax.Array:
    """Pools tokens [B, T, D] to [B, D] by the class token, the mean, or attention ("map")."""
    if head == "map":
        return map_head(params["MapHead"], x)
    return x[:, 0] if head == "token" else x.mean(axis=1)


def init_classifier(
    key: jax.Array, width: int, classes: int, *, bias: float, zero_kernel: bool
) -> Params:
    """Returns the head: kernel [width, classes], zeros or LeCun normal, and a constant bias."""
    kernel = zeros if zero_kernel else lecun_normal
    return init_dense(key, (width,), (classes,), kernel, jax.nn.initializers.constant(bias))


def representation(params: Params, x: jax.Array) -> jax.Array:
    """Maps the pooled x [B, D] to what the head reads: tanh of pre_logits where there is one."""
    return jnp.tanh(dense(params["pre_logits"], x)) if "pre_logits" in params else x
