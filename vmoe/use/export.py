"""A trained model as one file of StableHLO, weights inside, that jax alone can load and call."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from vmoe.errors import UserError
from vmoe.inference import Choices, chosen_model, run
from vmoe.moe import lowered_for
from vmoe.use.classify import probabilities
from vmoe.use.trained import Trained

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
SHARES = ("budget", "skip")
"""The choices that a program can take when it is called."""


def exported(
    trained: Trained, choices: Choices, platforms: tuple[str, ...], argument: str | None = None
) -> bytes:
    """The program u8[b, H, W, channels] -> f32[b, classes], pixels to probabilities.

    The batch size b is free. Routing groups are as in training and are run one after the other;
    what is missing of the last one is masked. With independent images there are no groups.

    Args:
      trained: the model; its weights become part of the file.
      choices: how it is used.
      platforms: that the file is for, of PLATFORMS.
      argument: the choice, of SHARES, that is a second argument f32[] of the program instead; the
        choices must say some value of it, which does not count. Below 0 and above 1 it is as these.

    Raises:
      UserError: if the model cannot follow the choices, or a platform is unknown.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise UserError(
            f"--platforms has {unknown[0] if unknown else 'nothing'}; "
            f"fix: some of {','.join(PLATFORMS)}"
        )
    chosen_model(trained.config.model, choices)
    (batch,) = export.symbolic_shape("b")
    pixels = jax.ShapeDtypeStruct((batch, *trained.image_shape), jnp.uint8)
    given = [pixels] if argument is None else [pixels, jax.ShapeDtypeStruct((), jnp.float32)]

    def program(images: jax.Array, share: jax.Array | None = None) -> jax.Array:
        served = choices.served if share is None else 1.0 - share if argument == "skip" else share
        return _probabilities(trained, choices, images, served)

    with lowered_for(jax.default_backend()):
        return bytes(export.export(jax.jit(program), platforms=platforms)(*given).serialize())


def _probabilities(trained: Trained, choices: Choices, pixels: jax.Array, served: Any) -> jax.Array:
    config = trained.config
    low, high = config.data.value_range
    images = pixels.astype(jnp.float32) * ((high - low) / 255.0) + low
    moe = config.model.moe
    size = 1 if moe is None or choices.independent else moe.group_images
    count = images.shape[0]
    groups = (count + size - 1) // size
    room = jnp.zeros((groups * size, *images.shape[1:]), jnp.float32)
    padded = jax.lax.dynamic_update_slice(room, images, (0,) * images.ndim)
    real = jnp.arange(groups * size) < count

    def one(group: tuple[jax.Array, jax.Array]) -> Any:
        images, mask = group
        logits, _ = run(config.model, choices, trained.params, images, mask, served)
        return probabilities(config.loss, logits, config.model.ensemble_size)

    found = jax.lax.map(
        one, (padded.reshape(groups, size, *images.shape[1:]), real.reshape(groups, size))
    )
    return found.reshape(groups * size, -1)[:count]
