"""What a model is worth on test images: accuracy, loss, and how its routers spread the tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe.config import TrainConfig
from vmoe.data.images import Images
from vmoe.data.pipeline import evaluation_batches
from vmoe.ensemble import average
from vmoe.inference import AS_TRAINED, Choices, chosen_model, run
from vmoe.losses import LOSSES, targets
from vmoe.model_config import ModelConfig

FACTORS = (2.0, 1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Report:
    """Results over a whole set of images.

    Attributes:
      images: how many.
      accuracy: share classified right.
      loss: mean loss per image, without auxiliary losses.
      dropped: share of (token, choice) pairs without a place, over all MoE blocks; None: dense.
      load: per MoE block, f64[E], the share of the kept pairs that each expert got.
    """

    images: int
    accuracy: float
    loss: float
    dropped: float | None = None
    load: dict[str, np.ndarray] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """The single numbers, by name."""
        dropped = {} if self.dropped is None else {"dropped": self.dropped}
        return {"accuracy": self.accuracy, "loss": self.loss} | dropped


def evaluate(
    config: TrainConfig, params: Any, images: Images, choices: Choices = AS_TRAINED
) -> Report:
    """Runs the model on every image; images that fill up the last batch take no buffer places.

    Raises:
      UserError: if the model cannot follow the choices; see `vmoe.inference`.
    """
    totals: Any = None
    for batch in evaluation_batches(images, config.data.eval_batch_size):
        sums = jax.device_get(
            _batch_sums(config.model, choices.program, config.loss, params, batch, choices.served)
        )
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    count = float(totals["images"])
    load = totals["load"]
    asked = sum(float(pairs) for pairs in totals["asked"].values())
    kept = sum(float(per_expert.sum()) for per_expert in load.values())
    return Report(
        images=int(count),
        accuracy=float(totals["right"]) / count,
        loss=float(totals["loss"]) / count,
        dropped=1.0 - kept / asked if load else None,
        load={block: own / max(float(own.sum()), 1.0) for block, own in load.items()},
    )


def with_capacity(config: TrainConfig, factor: float, batch_priority: bool) -> TrainConfig:
    """The config of a sparse model, evaluated at another capacity factor."""
    choices = Choices(capacity=factor, batch_priority=batch_priority)
    return replace(config, model=chosen_model(config.model, choices))


def capacity_sweep(
    config: TrainConfig, params: Any, images: Images, factors: Iterable[float] = FACTORS
) -> list[tuple[float, Report, Report]]:
    """(factor, report in token order, report with batch priority) for each capacity factor."""
    return [
        (
            factor,
            evaluate(config, params, images, Choices(capacity=factor, batch_priority=False)),
            evaluate(config, params, images, Choices(capacity=factor, batch_priority=True)),
        )
        for factor in factors
    ]


@partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_sums(
    config: ModelConfig,
    choices: Choices,
    loss: str,
    params: Any,
    batch: dict[str, jax.Array],
    served: jax.Array | None,
) -> Any:
    mask = batch["mask"]
    logits, routing = run(config, choices, params, batch["images"], mask, served)
    logits = average(loss, logits, config.ensemble_size)
    losses = LOSSES[loss](logits, targets(batch["labels"], config.num_classes))
    right = jnp.argmax(logits, axis=-1) == batch["labels"]
    # Soft and expert-choice routers keep no count of choices: nobody chooses, or experts do.
    reports = {b: r for b, r in routing.items() if isinstance(r, dict) and "load" in r}
    return {
        "images": jnp.sum(mask),
        "right": jnp.sum(right & mask),
        "loss": jnp.sum(jnp.where(mask, losses, 0.0)),
        "asked": {block: asked_pairs(report) for block, report in reports.items()},
        "load": {block: jnp.sum(report["load"], axis=0) for block, report in reports.items()},
    }


def asked_pairs(report: dict[str, jax.Array]) -> jax.Array:
    """(token, choice) pairs that wanted a place in a block: whole numbers, read off the shares.

    A group that asked kept at least one, because a capacity is at least 1.
    """
    kept = jnp.sum(report["load"], axis=-1)
    return jnp.sum(jnp.round(kept / jnp.maximum(1.0 - report["dropped"], 1e-6)))
