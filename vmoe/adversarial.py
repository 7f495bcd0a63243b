"""Images changed against the model: projected gradient steps within a box around each pixel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vmoe import model
from vmoe.config import AdversarialConfig, TrainConfig
from vmoe.data.pipeline import ImageSet, evaluation_batches
from vmoe.ensemble import average
from vmoe.losses import LOSSES, targets


def perturbed(
    config: AdversarialConfig, loss: Callable[[jax.Array], jax.Array], images: jax.Array
) -> jax.Array:
    """The images after so many steps of epsilon / steps along the sign of the loss's gradient.

    No pixel moves further than epsilon, so nothing needs to be projected back. Pixels may leave
    the value range, as in the released V-MoE code.

    Args:
      config: steps and epsilon; 0 steps give the images as they are.
      loss: images to a scalar f32[]; its randomness is fixed, so that the steps are against
        the loss that is trained on.
      images: f32[B, H, W, channels].

    Source: arXiv:1706.06083, section 2.1, begun at the image itself.
    """
    if not config.steps:
        return images
    step = config.epsilon / config.steps
    against = jax.grad(loss)
    return jax.lax.fori_loop(0, config.steps, lambda _, x: x + step * jnp.sign(against(x)), images)


class Attack(NamedTuple):
    """What changing the images does to a model.

    Attributes:
      error: share of images classified wrong, before and after.
      loss: mean loss, before and after.
      changed: share of images whose predicted class is another one.
    """

    error: tuple[float, float]
    loss: tuple[float, float]
    changed: float


def attack(config: TrainConfig, params: Any, images: ImageSet) -> Attack:
    """Changes every image against the model as it is evaluated, by config.adversarial."""
    total: Any = 0.0
    for batch in evaluation_batches(images, config.data.eval_batch_size):
        sums = _attack_sums(config.model, config.loss, config.adversarial, params, batch)
        total = total + np.asarray(sums, np.float64)
    count, *sums = total
    wrong, wrong_after, loss, loss_after, changed = (float(value / count) for value in sums)
    return Attack((wrong, wrong_after), (loss, loss_after), changed)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _attack_sums(
    config: Any, loss: str, how: AdversarialConfig, params: Any, batch: dict[str, jax.Array]
) -> jax.Array:
    mask = batch["mask"]
    wanted = targets(batch["labels"], config.num_classes)

    def run(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, _ = model.apply(config, params, images, mask=mask)
        logits = average(loss, logits, config.ensemble_size)
        return jnp.argmax(logits, axis=-1), jnp.where(mask, LOSSES[loss](logits, wanted), 0.0)

    before, loss_before = run(batch["images"])
    after, loss_after = run(perturbed(how, lambda x: jnp.sum(run(x)[1]), batch["images"]))
    flags = [before != batch["labels"], after != batch["labels"], before != after]
    wrong, wrong_after, changed = (jnp.sum(flag & mask) for flag in flags)
    return jnp.array(
        [jnp.sum(mask), wrong, wrong_after, jnp.sum(loss_before), jnp.sum(loss_after), changed],
        jnp.float32,
    )
