"""The model as two functions: `init` makes the parameter tree, `apply` maps images to logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vmoe.encoder import Inputs, encode, init_blocks
from vmoe.errors import UserError
from vmoe.layers.dense import dense, init_dense
from vmoe.layers.dropout import dropout
from vmoe.layers.heads import init_classifier, init_map_head, pool, representation
from vmoe.layers.norm import layer_norm
from vmoe.layers.params import Params, lecun_normal, named_key
from vmoe.layers.patches import init_patch_embedding, patch_embedding, patch_grid
from vmoe.layers.positions import init_learned_positions, learned_positions, sincos2d
from vmoe.model_config import ModelConfig


def init(config: ModelConfig, key: jax.Array, image_shape: Sequence[int]) -> Params:
    """Draws the parameters: a nested dict of f32 arrays, named as in the released checkpoints.

    Args:
      config: the model.
      key: each weight depends on the key and its own path only.
      image_shape: (height, width, channels).

    Raises:
      UserError: if the config does not hold together, or the image is no whole patches.

    Source: arXiv:2106.05974, appendix; experts are drawn with different seeds (`init_moe`).
    """
    config.validate()
    height, image_width, channels = image_shape
    rows, columns = patch_grid(height, image_width, config.patch_size)
    params: Params = {
        "embedding": init_patch_embedding(
            named_key(key, "embedding"), config.patch_size, channels, config.width
        ),
        "Encoder": init_blocks(config, named_key(key, "Encoder")),
    }
    if config.head == "token":
        params["cls"] = jnp.zeros((1, 1, config.width), jnp.float32)
    if config.position == "learned":
        tokens = rows * columns + (config.head == "token")
        positions = init_learned_positions(named_key(key, "positions"), tokens, config.width)
        params["Encoder"]["posembed_input"] = positions
    return params | _init_head(config, key)


def _init_head(config: ModelConfig, key: jax.Array) -> Params:
    params: Params = {}
    width = config.width
    if config.head == "map":
        params["MapHead"] = init_map_head(
            named_key(key, "MapHead"), width, config.num_heads, config.mlp_dim,
            qk_norm=config.qk_norm,
        )  # fmt: skip
    if config.representation_size is not None:
        size = (config.representation_size,)
        params["pre_logits"] = init_dense(
            named_key(key, "pre_logits"), (width,), size, lecun_normal
        )
        (width,) = size
    params["head"] = init_classifier(
        named_key(key, "head"), width, config.num_classes,
        bias=config.head_bias_init, zero_kernel=config.head_zero_init,
    )  # fmt: skip
    return params


def apply(
    config: ModelConfig,
    params: Params,
    images: jax.Array,
    *,
    key: jax.Array | None = None,
    train: bool = False,
    mask: jax.Array | None = None,
    moe_inputs: Sequence[Inputs] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Maps images [B, H, W, channels] (floating) to logits f32[B, num_classes].

    An ensemble of M members gives [B * M, num_classes], an image's members in a row; see
    `vmoe.ensemble` for what they say together.

    Args:
      config: the model.
      params: from `init`, or a checkpoint with the same tree.
      images: the batch; for a sparse model a whole number of groups of group_images.
      key: of dropout and routing noise; used, and needed, in training only.
      train: training capacity, dropout and noise.
      mask: bool[B], False for padding images, which are kept out of routing.
      moe_inputs: further inputs per MoE block in call order, such as {"noise": f32[G, S, E]},
        a recorded draw that replaces the key's.

    Returns:
      Logits, and metrics: auxiliary_loss f32[G], or [G, M] of an ensemble, summed over the MoE
      blocks, and each MoE block's report under its name; {} for a dense model. In training also
      rms, the root mean square of what the embedding and each block give.

    Raises:
      UserError: names the argument that does not fit, and the fix.
    """
    x, metrics = features(
        config, params, images, key=key, train=train, mask=mask, moe_inputs=moe_inputs
    )
    return dense(params["head"], x), metrics


def features(
    config: ModelConfig,
    params: Params,
    images: jax.Array,
    *,
    key: jax.Array | None = None,
    train: bool = False,
    mask: jax.Array | None = None,
    moe_inputs: Sequence[Inputs] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """As `apply`, but returns what the head reads: f32[B, representation_size or width]."""
    config.validate()
    _check_arguments(config, images, key, train, mask, moe_inputs)
    key = key if train else None
    x = embed(config, params, images, key=key)
    x, metrics = encode(
        config, params["Encoder"], x,
        train=train, key=named_key(key, "Encoder"), mask=mask, moe_inputs=moe_inputs,
    )  # fmt: skip
    # The last norm and the head are small, and what they lose in bf16 goes straight to the loss.
    x = layer_norm(params["Encoder"]["encoder_norm"], x.astype(jnp.float32))
    return representation(params, pool(config.head, params, x)), metrics


def embed(
    config: ModelConfig, params: Params, images: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
    """Maps images to the encoder's tokens [B, T, D] in the config's dtype, positions added.

    The class token comes first; sincos2d positions are for patches only.
    """
    grid = patch_embedding(params["embedding"], images.astype(config.dtype))
    batch, rows, columns, width = grid.shape
    x = grid.reshape(batch, rows * columns, width)
    if config.position == "sincos2d":
        x = x + sincos2d(rows, columns, width).astype(x.dtype)
    if config.head == "token":
        cls = jnp.broadcast_to(params["cls"].astype(x.dtype), (batch, 1, width))
        x = jnp.concatenate([cls, x], axis=1)
    if config.position == "learned":
        x = learned_positions(params["Encoder"]["posembed_input"], x)
    return dropout(x, config.dropout, named_key(key, "embed"))


def parameter_count(config: ModelConfig, image_shape: Sequence[int]) -> int:
    """The number of weights, from shapes alone: nothing is allocated, whatever the size."""
    shapes = jax.eval_shape(lambda key: init(config, key, image_shape), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _check_arguments(
    config: ModelConfig,
    images: jax.Array,
    key: jax.Array | None,
    train: bool,
    mask: jax.Array | None,
    moe_inputs: Sequence[Inputs] | None,
) -> None:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}{list(images.shape)}; "
            "fix: give floating [batch, height, width, channels]"
        )
    if mask is not None and (mask.shape != images.shape[:1] or mask.dtype != bool):
        raise UserError(
            f"mask is {mask.dtype}{list(mask.shape)}; "
            f"fix: give bool[{images.shape[0]}], one per image"
        )
    blocks = len(config.moe.layers) if config.moe else 0
    if moe_inputs is not None and len(moe_inputs) != blocks:
        raise UserError(
            f"moe_inputs has {len(moe_inputs)} entries for {blocks} MoE blocks; "
            "fix: give one dict per MoE block, in call order"
        )
    if train and key is None and _draws(config, moe_inputs):
        raise UserError("train=True draws dropout and routing noise; fix: give key=")


def _draws(config: ModelConfig, moe_inputs: Sequence[Inputs] | None) -> bool:
    """Whether a training step needs random numbers that `moe_inputs` does not hold."""
    if config.dropout or config.attention_dropout:
        return True
    if config.moe is None:
        return False
    recorded = moe_inputs is not None and all("noise" in inputs for inputs in moe_inputs)
    return bool(config.moe.dropout) or (config.moe.router.noise_std > 0 and not recorded)
