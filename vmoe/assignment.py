"""Which experts saw which tokens: the assignment that every MoE block makes, as weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import moegen as mg
from vmoe.encoder import attend, block_name, encoder_block
from vmoe.ensemble import repeat_images
from vmoe.inference import Choices, chosen_model, router_inputs
from vmoe.layers.norm import layer_norm
from vmoe.model import embed
from vmoe.model_config import ModelConfig, MoEConfig
from vmoe.moe import Aux, route_through
from vmoe.routing import bound_router, router_arrays


@mg.expert
def indicator(x: mg.floating["C D"], zero: mg.floating["D O"], unit: mg.floating["O"]):
    """Says which expert it is, whatever it reads: row e of an identity for expert e."""
    return mg.dot(x, zero, over="D") + unit


def expert_weights(
    config: ModelConfig,
    choices: Choices,
    params: Any,
    images: jax.Array,
    mask: jax.Array | None = None,
    served: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """For each MoE block f32[B * M, T, E]: the weight that an expert's output has for a token.

    0 where the expert did not see the token, or where the token found no place. The class token
    comes first where there is one. The same layer is run with experts that say who they are, so
    that this holds for every router. Independent images are to be given one at a time.
    """
    found = assignments(config, choices, params, images, mask, served)
    return {name: weights for name, (weights, _) in found.items()}


def assignments(
    config: ModelConfig,
    choices: Choices,
    params: Any,
    images: jax.Array,
    mask: jax.Array | None = None,
    served: jax.Array | None = None,
) -> dict[str, tuple[jax.Array, Aux]]:
    """`expert_weights` of each MoE block, with the router's report beside it."""
    config = chosen_model(config, choices)
    inputs = router_inputs(config, images, mask, served)
    x = embed(config, params, images)
    found: dict[str, tuple[jax.Array, Aux]] = {}
    for index in range(config.depth):
        block, weights = config.of_block(index), params["Encoder"][block_name(index)]
        if config.moe and index == min(config.moe.layers):
            x, mask = repeat_images((x, mask), config.ensemble_size)
        if block.moe and config.is_sparse(index):
            y = layer_norm(weights["LayerNorm_1"], attend(block, weights, x))
            found[block_name(index)] = _assigned(block.moe, weights["Moe"], y, mask, inputs)
        x, _ = encoder_block(block, weights, x, mask=mask, inputs=inputs)
    return found


def _assigned(
    config: MoEConfig, params: Any, x: jax.Array, mask: jax.Array | None, inputs: Any
) -> tuple[jax.Array, Aux]:
    experts, width = config.num_experts, x.shape[-1]
    names = {
        "zero": jnp.zeros((experts, width, experts), jnp.float32),
        "unit": jnp.eye(experts, dtype=jnp.float32),
    }
    weights = {"router": router_arrays(params["Router"]), "expert": names}
    x = x.astype(jnp.float32)
    return route_through(_layer(config), weights, config, x, mask=mask, inputs=inputs)


@functools.cache
def _layer(config: MoEConfig) -> Any:
    schedule = mg.Schedule(format=config.format)
    return mg.compile(bound_router(config.router, train=False), indicator, schedule=schedule)


read_experts = jax.jit(expert_weights, static_argnums=(0, 1))
"""`expert_weights`, compiled once per shape and `choices.program`."""
