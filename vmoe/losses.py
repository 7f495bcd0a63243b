"""Losses of a batch: cross-entropies per image, and what training minimises."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def softmax_xent(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of softmax(logits) per image; both arguments f32[B, classes], result f32[B]."""
    return -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_xent(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Binary cross-entropy summed over the classes; both f32[B, classes], result f32[B]."""
    positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.sum(labels * positive + (1.0 - labels) * negative, axis=-1)


LOSSES = {"softmax": softmax_xent, "sigmoid": sigmoid_xent}


def targets(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Labels i32[B] as one-hot f32[B, classes], with a share `smoothing` spread evenly.

    Labels that already are f32[B, classes], of several classes or mixed images, are smoothed only.
    """
    shares = labels if labels.ndim == 2 else jax.nn.one_hot(labels, num_classes)
    return shares * (1.0 - smoothing) + smoothing / num_classes


def training_loss(main: jax.Array, metrics: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """mean(main) + mean(auxiliary_loss), and the second term; a dense model has none.

    The auxiliary loss is summed over the MoE blocks, not divided by their number.

    Source: arXiv:2106.05974, appendix A.
    """
    auxiliary = jnp.zeros((), main.dtype)
    if "auxiliary_loss" in metrics:
        auxiliary = jnp.mean(metrics["auxiliary_loss"])
    return jnp.mean(main) + auxiliary, auxiliary
