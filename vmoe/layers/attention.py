"""Multi-head attention, with optional normalisation of queries and keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vmoe.layers.dense import dense, init_dense
from vmoe.layers.dropout import dropout
from vmoe.layers.norm import init_layer_norm, layer_norm
from vmoe.layers.params import Params, named_key, xavier_uniform


def init_attention(key: jax.Array, width: int, heads: int, *, qk_norm: bool = False) -> Params:
    """Returns query, key, value [width, heads, d], out [heads, d, width]; d = width / heads.

    With qk_norm also query_ln and key_ln, which have a scale only.
    """
    d = width // heads
    split, merged = ((width,), (heads, d)), ((heads, d), (width,))
    shapes = {"query": split, "key": split, "value": split, "out": merged}
    params = {
        name: init_dense(named_key(key, name), *shape, xavier_uniform)
        for name, shape in shapes.items()
    }
    if qk_norm:
        params |= {name: init_layer_norm(d, bias=False) for name in ("query_ln", "key_ln")}
    return params


def attention(
    params: Params,
    queries: jax.Array,
    inputs: jax.Array,
    *,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Attends from queries [B, Q, D] to inputs [B, T, D]: softmax(q k / sqrt(d)) v, merged to D.

    Logits and softmax are f32, the rest has the inputs' dtype. Queries and keys are normalised
    per head where the parameters have query_ln and key_ln. Dropout at `rate` acts on the
    attention weights.

    Source: arXiv:1706.03762; normalisation of queries and keys: arXiv:2302.05442, section 2.
    """
    q, k, v = (
        dense(params[name], x)
        for name, x in (("query", queries), ("key", inputs), ("value", inputs))
    )
    if "query_ln" in params:
        q, k = layer_norm(params["query_ln"], q), layer_norm(params["key_ln"], k)
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = dropout(jax.nn.softmax(logits, axis=-1), rate, key).astype(v.dtype)
    return dense(params["out"], jnp.einsum("bhqk,bkhd->bqhd", weights, v), dims=2)
