"""What a trained model says about images: log-probabilities, and the share of choices dropped."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe import model
from vmoe.ensemble import average
from vmoe.model_config import ModelConfig

Inputs = Callable[[int], Sequence[Mapping[str, np.ndarray]]]
"""From the number of a batch to the further inputs of its MoE blocks."""


def log_probabilities(
    config: ModelConfig, params: Any, images: np.ndarray, batch: int, inputs: Inputs | None = None
) -> tuple[np.ndarray, float | None]:
    """F32[N, classes] of images f32[N, H, W, channels], as the model is tested.

    Images in the same call compete for the same buffers, in groups of the model's group_images.

    Returns:
      The log-probabilities, and the share of (token, choice) pairs that found no place, or tokens
      that no expert took; None where the model has no such thing.

    Raises:
      ValueError: if the images are no whole number of batches.
    """
    if len(images) % batch:
        raise ValueError(f"{len(images)} images are no whole batches of {batch}; fix: a divisor")
    found, dropped = [], []
    for number, start in enumerate(range(0, len(images), batch)):
        more = None if inputs is None else inputs(number)
        log_p, share = classify(config, params, images[start : start + batch], more)
        found.append(np.asarray(log_p))
        dropped.append(share)
    share = None if dropped[0] is None else float(np.mean(dropped))
    return np.concatenate(found), share


@partial(jax.jit, static_argnums=0)
def classify(
    config: ModelConfig, params: Any, images: jax.Array, inputs: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Log-probabilities of one batch, and the share dropped; `inputs` is one mapping per block."""
    logits, routing = model.apply(config, params, images, moe_inputs=inputs)
    log_p = jax.nn.log_softmax(average("softmax", logits, config.ensemble_size))
    shares = [r["dropped"] for r in routing.values() if isinstance(r, dict) and "dropped" in r]
    return log_p, jnp.mean(jnp.stack(shares)) if shares else None
