"""The same layer as others write it in JAX: one-hot einsums, and ragged products of sorted rows.

Each is a function of a layer's parameters and tokens x[1, S, D], with the router, the experts and
the results of the layer that is measured.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bench.workloads import Params
from bench.yardsticks import gelu

RaggedDot = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""From rows [N, D] sorted by expert, weights [E, D, F] and rows per expert to [N, F]."""


def route(params: Params, x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest gates of each token f32[S, K], and their experts i32[S, K]."""
    logits = x[0].astype(jnp.float32) @ params["router"]["w"]
    weight, expert = jax.lax.top_k(jax.nn.softmax(logits), k)
    return weight, expert


def onehot(params: Params, x: jax.Array, k: int, capacity: int) -> jax.Array:
    """The classical layout of GShard (arXiv:2006.16668): masks [S, E, C], moves by einsum.

    First choices are served before second ones; choices past the capacity are dropped.
    """
    one = params["expert"]
    experts = one["w1"].shape[0]
    weight, expert = route(params, x, k)
    hot = jax.nn.one_hot(expert.T.reshape(-1), experts, dtype=jnp.int32)  # choice-major
    place = jnp.sum(jnp.cumsum(hot, axis=0) * hot, axis=1).reshape(k, -1).T - 1
    mask = jax.nn.one_hot(expert, experts, dtype=x.dtype)[..., None]
    mask = mask * jax.nn.one_hot(place, capacity, dtype=x.dtype)[:, :, None]  # 0 past the capacity
    xe = jnp.einsum("skec,sd->ecd", mask, x[0])
    hidden = gelu(jnp.einsum("ecd,edf->ecf", xe, one["w1"]) + one["b1"][:, None])
    ye = jnp.einsum("ecf,efd->ecd", hidden, one["w2"]) + one["b2"][:, None]
    return jnp.einsum("skec,sk,ecd->sd", mask, weight.astype(x.dtype), ye)[None]


def ragged(params: Params, x: jax.Array, k: int, ragged_dot: RaggedDot) -> jax.Array:
    """Rows sorted by expert, two ragged products, and a scatter-add back; nothing is dropped."""
    one = params["expert"]
    weight, expert = route(params, x, k)
    order = jnp.argsort(expert.reshape(-1), stable=True)
    owner, token = expert.reshape(-1)[order], order // k
    sizes = jnp.bincount(owner, length=one["w1"].shape[0]).astype(jnp.int32)
    hidden = gelu(ragged_dot(x[0][token], one["w1"], sizes) + one["b1"][owner])
    rows = ragged_dot(hidden, one["w2"], sizes) + one["b2"][owner]
    rows = rows * weight.reshape(-1)[order, None].astype(x.dtype)
    return jnp.zeros_like(x[0]).at[token].add(rows)[None]


def tokamax_ragged_dot() -> RaggedDot:
    """The ragged product of tokamax on this device; raises ImportError if it is not there."""
    dot: Any = importlib.import_module("tokamax").ragged_dot
    implementation = "xla" if jax.default_backend() == "cpu" else None

    def ragged_dot(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
        made: jax.Array = dot(rows, weights, sizes, implementation=implementation)
        return made

    return ragged_dot
