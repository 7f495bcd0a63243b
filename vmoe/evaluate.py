"""What a model is worth on test images: accuracy, loss, and how its routers spread the tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vmoe.config import TrainConfig
from vmoe.data.images import Images
from vmoe.data.pipeline import evaluation_batches
from vmoe.ensemble import average
from vmoe.inference import AS_TRAINED, Choices, chosen_model, run
from vmoe.losses import LOSSES, targets
from vmoe.model_config import ModelConfig
from vmoe.sharding import everywhere, image_parts, on_mesh, own_images, place_batch

FACTORS = (2.0, 1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Report:
    """Results over a whole set of images.

    Attributes:
      images: how many.
      accuracy: share classified right.
      loss: mean loss per image, without auxiliary losses.
      dropped: share of (token, choice) pairs without a place, over all MoE blocks; of an
        expert-choice router, of tokens that no expert took. None: dense.
      load: per MoE block, f64[E], the share of the kept pairs that each expert got.
      dropped_in: `dropped` of each MoE block.
      gate_entropy: per MoE block, the mean over tokens of the gates' entropy over log E, where the
        router reports it.
    """

    images: int
    accuracy: float
    loss: float
    dropped: float | None = None
    load: dict[str, np.ndarray] = field(default_factory=dict)
    dropped_in: dict[str, float] = field(default_factory=dict)
    gate_entropy: dict[str, float] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """The single numbers, by name."""
        dropped = {} if self.dropped is None else {"dropped": self.dropped}
        return {"accuracy": self.accuracy, "loss": self.loss} | dropped


def evaluate(
    config: TrainConfig,
    params: Any,
    images: Images,
    choices: Choices = AS_TRAINED,
    mesh: Mesh | None = None,
) -> Report:
    """Runs the model on every image; images that fill up the last batch take no buffer places.

    On a mesh every process reads the images of its own devices, and all have the whole report.

    Raises:
      UserError: if the model cannot follow the choices; see `vmoe.inference`.
    """
    totals: Any = None
    size = config.data.eval_batch_size
    # Filled up so that devices have equal parts, of whole routing groups of the same images.
    whole = math.lcm(image_parts(mesh), config.model.moe.group_images if config.model.moe else 1)
    filled = -(-size // whole) * whole
    own = None if mesh is None else own_images(mesh, filled)
    static = config.model, choices.program, config.loss, mesh
    for batch in evaluation_batches(images, size, own):
        placed = place_batch(mesh, batch, filled)
        sums = jax.device_get(_batch_sums(*static, params, placed, choices.served))
        totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
    count = float(totals["images"])
    blocks: dict[str, Any] = totals["blocks"]
    return Report(
        images=int(count),
        accuracy=float(totals["right"]) / count,
        loss=float(totals["loss"]) / count,
        dropped=dropped_share(blocks.values()),
        load={b: own["load"] / max(float(own["load"].sum()), 1.0) for b, own in blocks.items()},
        dropped_in={block: dropped_share([own]) for block, own in blocks.items()},
        gate_entropy={
            block: float(own["entropy"]) / max(float(own["asked"]), 1.0)
            for block, own in blocks.items()
            if "entropy" in own
        },
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


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _batch_sums(
    config: ModelConfig,
    choices: Choices,
    loss: str,
    mesh: Mesh | None,
    params: Any,
    batch: dict[str, jax.Array],
    served: jax.Array | None,
) -> Any:
    mask = batch["mask"]
    with on_mesh(mesh):
        logits, routing = run(config, choices, params, batch["images"], mask, served)
    logits = average(loss, logits, config.ensemble_size)
    losses = LOSSES[loss](logits, targets(batch["labels"], config.num_classes))
    right = jnp.argmax(logits, axis=-1) == batch["labels"]
    sums = {
        "images": jnp.sum(mask),
        "right": jnp.sum(right & mask),
        "loss": jnp.sum(jnp.where(mask, losses, 0.0)),
        "blocks": counts(routing),
    }
    return everywhere(mesh, sums)


def counts(routing: dict[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """What the MoE blocks did with a batch, summed over its groups, of a model's metrics.

    Of each block load f32[E], asked and lost f32[]: choices served per expert, all choices, and
    those without a place (of an expert-choice router: tokens); and where the router tells it,
    entropy f32[], times asked. Blocks with a soft router are left out: nobody chooses.
    """
    return {
        block: _counts(report)
        for block, report in routing.items()
        if isinstance(report, dict) and {"load", "asked", "dropped"} <= report.keys()
    }


def _counts(report: dict[str, jax.Array]) -> dict[str, jax.Array]:
    asked = report["asked"]
    found = {
        "load": jnp.sum(report["load"], axis=0),
        "asked": jnp.sum(asked),
        "lost": jnp.sum(jnp.round(report["dropped"] * asked)),
    }
    if "gate_entropy" in report:
        found["entropy"] = jnp.sum(report["gate_entropy"] * asked)
    return found


def dropped_share(blocks: Iterable[dict[str, Any]]) -> float | None:
    """Lost over asked of all blocks together; None if there are none."""
    lost, asked = 0.0, 0.0
    found = False
    for block in blocks:
        lost, asked, found = lost + float(block["lost"]), asked + float(block["asked"]), True
    return lost / max(asked, 1.0) if found else None
