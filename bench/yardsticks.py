"""What a layer is measured against: dense MLPs of equal FLOPs, and the bare expert products.

Each is a function of parameters and rows: `dense_inputs` and `floor_inputs` make them of a layer's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from bench.workloads import Params


class Rows(NamedTuple):
    """The rows[k * S, D] of a dense MLP, and the tokens[S, D] that a router would see."""

    rows: jax.Array
    tokens: jax.Array


def gelu(x: jax.Array) -> jax.Array:
    """GELU computed in float32: in bfloat16 XLA on CPU takes two to three times as long."""
    return jax.nn.gelu(x.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x[R, D] @ w[D, F], whose weight gradient reads x in the layout that is fast on CPUs."""
    return x @ w


def _product_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> Any:
    x, w = saved
    across = jax.lax.dot_general(dy, w, (((1,), (1,)), ((), ())))
    rows = with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))
    return across, rows @ dy


product.defvjp(lambda x, w: (x @ w, (x, w)), _product_backward)


def dense(params: Params, x: Rows) -> Any:
    """A plain dense MLP on as many rows as the layer has assignments, and the router's product."""
    one = params["expert"]
    hidden = jax.nn.gelu(x.rows @ one["w1"] + one["b1"])
    return hidden @ one["w2"] + one["b2"], logits(params, x)


def dense_tuned(params: Params, x: Rows) -> Any:
    """The same with a GELU in float32 and layouts chosen for the weight gradients."""
    one = params["expert"]
    hidden = gelu(product(x.rows, one["w1"]) + one["b1"])
    return product(hidden, one["w2"]) + one["b2"], logits(params, x)


def dense_transposed(params: Params, x: Rows) -> Any:
    """The tuned MLP with its second weight stored [D, F]."""
    one = params["expert"]
    hidden = gelu(product(x.rows, one["w1"]) + one["b1"])
    across = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(hidden, one["w2"], across) + one["b2"], logits(params, x)


def logits(params: Params, x: Rows) -> jax.Array:
    """The router's product, in float32 as the router computes it."""
    return x.tokens.astype(jnp.float32) @ params["router"]["w"]


DENSE: dict[str, Callable[[Params, Rows], Any]] = {
    "dense": dense,
    "dense_tuned": dense_tuned,
    "dense_transposed": dense_transposed,
}


def dense_inputs(name: str, params: Params, x: jax.Array, k: int) -> tuple[Params, Rows]:
    """One expert's weights as the MLP of that name stores them, and k copies of x[1, S, D]."""
    one = {weight: stacked[0] for weight, stacked in params["expert"].items()}
    if name == "dense_transposed":
        one["w2"] = jnp.copy(one["w2"].T)
    return {"expert": one, "router": params["router"]}, Rows(jnp.concatenate([x[0]] * k), x[0])


def floor(params: Params, x: jax.Array) -> Any:
    """The bare expert MLPs on rows x[E, C, D], an equal share for each: no routing at all."""
    one = params["expert"]
    hidden = gelu(x @ one["w1"] + one["b1"][:, None])
    return hidden @ one["w2"] + one["b2"][:, None]


def floor_inputs(params: Params, x: jax.Array, k: int) -> tuple[Params, jax.Array]:
    """The experts' weights, and C = ceil(S * k / E) of the tokens for each."""
    experts = params["expert"]["w1"].shape[0]
    wanted = -(-x.shape[1] * k // experts) * experts
    rows = jnp.resize(x[0], (wanted, x.shape[2]))
    return {"expert": params["expert"]}, rows.reshape(experts, -1, x.shape[2])
