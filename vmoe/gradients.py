"""Gradients of a step: of the whole batch at once, or summed over parts of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
Loss = Callable[[Any, Batch, jax.Array], tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]


def gradients(
    loss: Loss, params: Any, batch: Batch, key: jax.Array, parts: int = 1
) -> tuple[Any, dict[str, jax.Array], Any]:
    """Gradients of the mean loss, its scalars, and the routers' reports.

    Args:
      loss: (params, batch, key) to (scalar, (scalars reported, arrays with groups first)).
      params: the weights.
      batch: arrays with images first.
      key: of the loss; with several parts each has its own.
      parts: the batch is cut into so many; only one is in memory at a time. Routing groups are
        consecutive images, so they are the same as without cutting.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        total, (scalars, reports) = gradient(params, batch, key)
        return total, scalars, reports

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
        own, index = part
        more, reported = gradient(params, own, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, more), reported

    cut = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    zero = jax.tree.map(jnp.zeros_like, params)
    total, (scalars, reports) = jax.lax.scan(add, zero, (cut, jnp.arange(parts)))
    return (
        jax.tree.map(lambda g: g / parts, total),
        jax.tree.map(lambda a: jnp.mean(a, axis=0), scalars),
        jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), reports),
    )
