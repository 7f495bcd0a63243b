"""Loss-free balancing: a bias per expert, moved outside the gradient, decides who is chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import moegen as mg
from moegen.routers.common import place, renormalised


@mg.router
def loss_free(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    bias: mg.f32["E"],
    mask: mg.bool_["S"] = None,
    *,
    k: int = 2,
    scale: float = 1.0,
    capacity_factor: float = 1.25,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = True,
    batch_priority: bool | str = False,
):
    """Each token goes to the k experts with the largest score + bias, weighted by score alone.

    No gradient reaches the bias: call `update_bias` with the reported load after each step.
    Source: arXiv:2408.15664; scores as in arXiv:2412.19437.
    """
    score = mg.sigmoid(mg.dot(mg.cast(x, "f32"), w, over="D"))
    _, expert = mg.top_k(mg.stop_gradient(score + bias), k, over="E")
    weight = renormalised(mg.take(score, expert, over="E")) * scale
    route, report = place(
        expert, weight, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    return route, report


def update_bias(bias: jax.Array, load: jax.Array, rate: float = 1e-3) -> jax.Array:
    """Raises the bias of experts with less than the mean load by `rate`, lowers the others'.

    Args:
      bias: f32[E].
      load: f32[G, E] or f32[E], as the router reports it.
      rate: the step u of the paper.

    Source: arXiv:2408.15664, algorithm 1.
    """
    total = load.reshape(-1, load.shape[-1]).sum(0)
    return bias + rate * jnp.sign(total.mean() - total)
