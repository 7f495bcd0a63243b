"""Which classes' patches go to which experts."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe.assignment import assignments
from vmoe.config import TrainConfig
from vmoe.data.pipeline import ImageSet, evaluation_batches
from vmoe.errors import UserError
from vmoe.inference import AS_TRAINED, Choices
from vmoe.model_config import ModelConfig


def expert_class_counts(
    config: TrainConfig, params: Any, images: ImageSet, choices: Choices = AS_TRAINED
) -> dict[str, np.ndarray]:
    """f64[classes, E] for each MoE block: how many tokens of a class's images an expert served.

    A choice without a place is in no count. The images of a routing group share its places, so
    that what is served of one depends on the others, unless the choices are independent.

    Raises:
      UserError: if there are no MoE blocks, or all experts serve every token in them.
    """
    if config.model.moe is None:
        raise UserError("a dense model has no experts; fix: evaluate without the set routing")
    counts: dict[str, np.ndarray] = {}
    for batch in evaluation_batches(images, config.data.eval_batch_size):
        loads = jax.device_get(
            _loads(config.model, choices.program, params, batch["images"], batch["mask"],
                   choices.served)
        )  # fmt: skip
        for block, load in loads.items():
            total = counts.setdefault(block, np.zeros((images.num_classes, load.shape[1])))
            np.add.at(total, batch["labels"][batch["mask"]], load[batch["mask"]])
    if not counts:
        raise UserError(
            f'all experts see every token with the router "{config.model.moe.router.name}"; fix: '
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


@partial(jax.jit, static_argnums=(0, 1))
def _loads(
    config: ModelConfig,
    choices: Choices,
    params: Any,
    images: jax.Array,
    mask: jax.Array,
    served: jax.Array | None,
) -> dict[str, jax.Array]:
    """For each MoE block f32[B, E]: the tokens of an image, of all members, that an expert saw."""
    found = assignments(config, choices, params, images, mask, served)
    return {
        block: jnp.sum(weights > 0, axis=1).reshape(len(images), -1, weights.shape[-1]).sum(1)
        for block, (weights, report) in found.items()
        if "load" in report  # a soft router shows every expert a mixture of all tokens
    }
