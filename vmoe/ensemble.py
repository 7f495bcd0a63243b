"""Ensembles of M members: images once per member, and what the members say together.

Wherever there is one row per image and member, an image's members are M rows in a row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def repeat_images(arrays: Any, members: int) -> Any:
    """Every array [B, ...] of a tree as [B * M, ...], each image M times in a row.

    Labels are repeated like images: in training, every member learns from every label.
    """
    return jax.tree.map(lambda a: jnp.repeat(a, members, axis=0), arrays) if members > 1 else arrays


def average(loss: str, logits: jax.Array, members: int) -> jax.Array:
    """Logits of the members' mean probabilities, for the same loss and the same predictions.

    Args:
      loss: "softmax": probabilities over the classes; "sigmoid": one per class.
      logits: f32[B * M, classes].
      members: M; 1 gives the logits as they are.

    Returns:
      f32[B, classes]. For "softmax" they are log-probabilities: logsumexp over members of
      log p, minus log M.

    Source: arXiv:2110.03360, section 2.
    """
    if members == 1:
        return logits
    each = logits.reshape(-1, members, logits.shape[-1])
    if loss == "sigmoid":
        return _log_mean(jax.nn.log_sigmoid(each)) - _log_mean(jax.nn.log_sigmoid(-each))
    return _log_mean(jax.nn.log_softmax(each))


def _log_mean(log_probabilities: jax.Array) -> jax.Array:
    """The logarithm of the mean over members, dim 1."""
    members = log_probabilities.shape[1]
    return jax.nn.logsumexp(log_probabilities, axis=1) - jnp.log(members)
