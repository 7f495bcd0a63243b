"""Images to class probabilities, the time it took, and the experts that saw the patches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vmoe.assignment import read_experts
from vmoe.ensemble import average
from vmoe.inference import Choices, predict
from vmoe.use.trained import Trained


class Prediction(NamedTuple):
    """What a model says of one image.

    Attributes:
      probabilities: f32[classes]; they sum to 1 unless the loss is "sigmoid".
      seconds: that the model took for it, compile excluded; of a batch, its share.
      experts: per MoE block f32[M, T, E], see `expert_weights`.
    """

    probabilities: np.ndarray
    seconds: float
    experts: dict[str, np.ndarray]


def classify(
    trained: Trained, images: Sequence[np.ndarray], choices: Choices
) -> Iterator[Prediction]:
    """A prediction per image f32[H, W, channels], in order; independent ones go one by one."""
    size = 1 if choices.independent else len(images)
    for start in range(0, len(images), size):
        yield from _batch(trained, np.stack(images[start : start + size]), choices)


def probabilities(loss: str, logits: jax.Array, members: int) -> jax.Array:
    """f32[B, classes] of logits f32[B * M, classes], as the loss reads them."""
    together = average(loss, logits, members)
    return jax.nn.sigmoid(together) if loss == "sigmoid" else jax.nn.softmax(together)


def _batch(trained: Trained, images: np.ndarray, choices: Choices) -> list[Prediction]:
    model, count = trained.config.model, len(images)
    group = model.moe.group_images if model.moe and not choices.independent else 1
    missing = -count % group
    padded = jnp.asarray(np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))))
    mask = jnp.arange(count + missing) < count

    def call() -> Any:
        return jax.block_until_ready(predict(model, trained.params, padded, choices, mask=mask))

    call()  # compiles at the first
    begin = time.perf_counter()
    logits, _ = call()
    seconds = (time.perf_counter() - begin) / count
    seen = read_experts(model, choices.program, trained.params, padded, mask, choices.served)
    says = np.asarray(probabilities(trained.config.loss, logits, model.ensemble_size))
    members = {
        name: np.asarray(w).reshape(-1, model.ensemble_size, *w.shape[1:])
        for name, w in seen.items()
    }
    return [
        Prediction(says[n], seconds, {name: w[n] for name, w in members.items()})
        for n in range(count)
    ]
