"""The encoder: pre-norm blocks of attention and an MLP, which is dense or a mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vmoe.ensemble import repeat_images
from vmoe.layers.attention import attention, init_attention
from vmoe.layers.dropout import dropout
from vmoe.layers.mlp import init_mlp, mlp
from vmoe.layers.norm import init_layer_norm, layer_norm
from vmoe.layers.params import Params, named_key
from vmoe.model_config import ModelConfig
from vmoe.moe import Aux, init_moe, moe_block

Inputs = Mapping[str, jax.Array]
"""Further inputs of one MoE block, by the name of the router's argument."""


KEPT = {"dots": jax.checkpoint_policies.dots_saveable, "full": None}
"""What each rematerialisation keeps for the backward; None: nothing but the inputs."""


def block_name(index: int) -> str:
    """The name of a block in the parameter tree and in the metrics."""
    return f"encoderblock_{index}"


def init_block(config: ModelConfig, index: int, key: jax.Array) -> Params:
    """Returns LayerNorm_0, SelfAttention, LayerNorm_1, and Mlp or Moe."""
    width = config.width
    params = {
        "LayerNorm_0": init_layer_norm(width),
        "SelfAttention": init_attention(
            named_key(key, "SelfAttention"), width, config.num_heads, qk_norm=config.qk_norm
        ),
        "LayerNorm_1": init_layer_norm(width),
    }
    if config.is_sparse(index):
        hidden = config.moe.mlp_dim or config.mlp_dim
        params["Moe"] = init_moe(named_key(key, "Moe"), config.moe, width, hidden)
    else:
        params["Mlp"] = init_mlp(named_key(key, "Mlp"), width, config.mlp_dim)
    return params


def init_blocks(config: ModelConfig, key: jax.Array) -> Params:
    """Returns every encoderblock_i and the last norm, encoder_norm."""
    names = [block_name(i) for i in range(config.depth)]
    blocks = {name: init_block(config, i, named_key(key, name)) for i, name in enumerate(names)}
    return blocks | {"encoder_norm": init_layer_norm(config.width)}


def encoder_block(
    config: ModelConfig,
    params: Params,
    x: jax.Array,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    inputs: Inputs | None = None,
) -> tuple[jax.Array, Aux | None]:
    """X [B, T, D] -> x + MHA(LN x), then x + MLP-or-MoE(LN x).

    The key is None outside training. The second result is the router's report, None for a
    dense block.

    Source: arXiv:2010.11929 (block), arXiv:2106.05974 (experts).
    """
    x = attend(config, params, x, key=key)
    y = layer_norm(params["LayerNorm_1"], x)
    mlp_key = named_key(key, "mlp")
    if "Moe" not in params:
        return x + mlp(params["Mlp"], y, rate=config.dropout, key=mlp_key), None
    y, aux = moe_block(
        config.moe, params["Moe"], y, train=train, key=mlp_key, mask=mask, inputs=inputs
    )
    return x + y, aux


def attend(
    config: ModelConfig, params: Params, x: jax.Array, *, key: jax.Array | None = None
) -> jax.Array:
    """The first half of a block: x + MHA(LN x)."""
    y = layer_norm(params["LayerNorm_0"], x)
    weights_key, output_key = named_key(key, "attention_weights"), named_key(key, "attention")
    y = attention(params["SelfAttention"], y, y, rate=config.attention_dropout, key=weights_key)
    return x + dropout(y, config.dropout, output_key)


def encode(
    config: ModelConfig,
    params: Params,
    x: jax.Array,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    moe_inputs: Sequence[Inputs] | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Runs all blocks on tokens x [B, T, D]; `moe_inputs` has one entry per MoE block, in order.

    Returns:
      Tokens before encoder_norm, [B * M, T, D] for an ensemble of M members, and the metrics:
      auxiliary_loss f32[G] or [G, M], summed over the MoE blocks, and each MoE block's report
      under its name; {} for a dense model. In training also rms: the root mean square of what
      the embedding and each block give, f32[] by name.
    """
    metrics: dict[str, Any] = {}
    rms = {"embedding": _rms(x)} if train else {}
    rest = iter(moe_inputs or ())
    first = min(config.moe.layers) if config.moe else None
    for index in range(config.depth):
        name = block_name(index)
        if index == first:  # members share all blocks before the experts, which are the same
            x, mask = repeat_images((x, mask), config.ensemble_size)
        inputs = next(rest, None) if config.is_sparse(index) else None
        block = _rematerialised(config, partial(encoder_block, config.of_block(index), train=train))
        x, aux = block(params[name], x, key=named_key(key, name), mask=mask, inputs=inputs)
        if train:
            rms[name] = _rms(x)
        if aux is not None:
            metrics[name] = aux
    if metrics:
        metrics["auxiliary_loss"] = sum(aux["auxiliary_loss"] for aux in metrics.values())
    return x, metrics | ({"rms": rms} if rms else {})


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(x).astype(jnp.float32))))


def _rematerialised(config: ModelConfig, block: Callable[..., Any]) -> Callable[..., Any]:
    """The block, which keeps for its backward what config.remat says."""
    if config.remat == "none":
        return block
    return jax.checkpoint(block, policy=KEPT[config.remat])
