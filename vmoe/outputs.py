"""What a model says about every image of a set: for scores that are not sums over images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe import model
from vmoe.calibration import probabilities
from vmoe.config import TrainConfig
from vmoe.data.pipeline import ImageSet, evaluation_batches
from vmoe.ensemble import average
from vmoe.inference import AS_TRAINED, Choices, run
from vmoe.model_config import ModelConfig


@dataclass(frozen=True)
class Outputs:
    """Logits of a whole set; images that cannot be read are left out.

    Attributes:
      members: f32[N, M, classes], one row for each member of an ensemble, else M = 1.
      logits: f32[N, classes], of all members together.
      labels: i32[N].
    """

    members: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    @cached_property
    def p(self) -> np.ndarray:
        """Probabilities f64[N, classes] that sum to 1, also of a model trained with sigmoids."""
        return probabilities(self.logits)

    @property
    def accuracy(self) -> float:
        """Share of images classified right."""
        return float(np.mean(self.logits.argmax(1) == self.labels))


def collect(
    config: TrainConfig, params: Any, images: ImageSet, choices: Choices = AS_TRAINED
) -> Outputs:
    """Runs the model on every image with the choices, padding kept out of routing."""

    def logits_of(params: Any, images: jax.Array, mask: jax.Array) -> Any:
        fixed = config.model, choices.program, config.loss
        return _logits(*fixed, params, images, mask, choices.served)

    (logits, members), labels = _over(config, logits_of, params, images)
    return Outputs(members, logits, labels)


def collect_features(
    config: TrainConfig, params: Any, images: ImageSet
) -> tuple[np.ndarray, np.ndarray]:
    """What the head reads, f32[N, D], the mean over members, and the labels i32[N]."""
    return _over(config, partial(_features, config.model), params, images)


def _over(
    config: TrainConfig, function: Callable[..., Any], params: Any, images: ImageSet
) -> tuple[Any, np.ndarray]:
    """The results of every batch joined, without the rows of padding."""
    kept, labels = [], []
    for batch in evaluation_batches(images, config.data.eval_batch_size):
        mask = batch["mask"]
        found = jax.device_get(function(params, batch["images"], mask))
        kept.append(jax.tree.map(lambda a, mask=mask: a[mask], found))
        labels.append(batch["labels"][mask])
    return jax.tree.map(lambda *parts: np.concatenate(parts), *kept), np.concatenate(labels)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(
    config: ModelConfig,
    choices: Choices,
    loss: str,
    params: Any,
    images: jax.Array,
    mask: jax.Array,
    served: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    rows, _ = run(config, choices, params, images, mask, served)
    together = average(loss, rows, config.ensemble_size)
    return together, rows.reshape(-1, config.ensemble_size, rows.shape[-1])


@partial(jax.jit, static_argnums=0)
def _features(config: ModelConfig, params: Any, images: jax.Array, mask: jax.Array) -> jax.Array:
    rows, _ = model.features(config, params, images, mask=mask)
    return jnp.mean(rows.reshape(-1, config.ensemble_size, rows.shape[-1]), axis=1)
