"""Which classes' patches go to which experts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from vmoe import model
from vmoe.config import TrainConfig
from vmoe.data.pipeline import ImageSet, evaluation_batches
from vmoe.errors import UserError
from vmoe.model_config import ModelConfig
from vmoe.routing import has_setting


def expert_class_counts(
    config: TrainConfig, params: Any, images: ImageSet
) -> dict[str, np.ndarray]:
    """f64[classes, E] for each MoE block: how often patches of a class's images chose an expert.

    Choices are counted without a capacity, so that they are an image's own, whatever the batch:
    every image is a routing group of its own with room for all.

    Raises:
      UserError: if there are no MoE blocks, or tokens do not choose in them.
    """
    alone = _one_image_groups(config)
    counts: dict[str, np.ndarray] = {}
    for batch in evaluation_batches(images, config.data.eval_batch_size):
        loads = jax.device_get(_loads(alone, params, batch["images"], batch["mask"]))
        for block, load in loads.items():
            total = counts.setdefault(block, np.zeros((images.num_classes, load.shape[1])))
            np.add.at(total, batch["labels"][batch["mask"]], load[batch["mask"]])
    if not counts:
        raise UserError(
            f'tokens choose no experts with the router "{config.model.moe.router.name}"; fix: '  # type: ignore[union-attr]
            "evaluate without the set routing"
        )
    return counts


def evenness(counts: np.ndarray) -> float:
    """Entropy of the shares of f64[..., E] choices over the logarithm of E: 1 is an even load."""
    shares = counts.reshape(-1, counts.shape[-1]).sum(0)
    return _entropy(shares / shares.sum()) / float(np.log2(len(shares)))


def class_information(counts: np.ndarray) -> float:
    """Mutual information, in bits, of the class of an image and an expert its patches choose.

    0: every class is spread alike; the most is the entropy of the classes or of the load.
    """
    joint = counts / counts.sum()
    parts = joint.sum(0), joint.sum(1)
    return _entropy(parts[0]) + _entropy(parts[1]) - _entropy(joint.ravel())


def _entropy(shares: np.ndarray) -> float:
    some = shares[shares > 0]
    return float(-np.sum(some * np.log2(some)))


def _one_image_groups(config: TrainConfig) -> ModelConfig:
    moe = config.model.moe
    if moe is None:
        raise UserError("a dense model has no experts; fix: evaluate without the set routing")
    router = moe.router
    if has_setting(router, "capacity_factor") and not router.dropless:
        # The factor is relative to an even load: E times that is room for every choice.
        router = replace(router, eval_capacity_factor=float(moe.num_experts))
    return replace(config.model, moe=replace(moe, group_images=1, router=router))


@partial(jax.jit, static_argnums=0)
def _loads(
    config: ModelConfig, params: Any, images: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    _, routing = model.apply(config, params, images, mask=mask)
    return {b: r["load"] for b, r in routing.items() if isinstance(r, dict) and "load" in r}
