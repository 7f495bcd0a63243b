"""Whole programs to compile for a TPU: a training step of a V-MoE, and a layer from end to end."""

from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp

import moegen
from bench.train_step import Case as TrainCase
from bench.train_step import batch_of, small_case, with_format
from moegen.experts import mlp
from moegen.routers import noisy_top_k
from moegen.tune.cases import Case
from vmoe.moe import compiled_layer
from vmoe.state import init_state, make_train_step


def train_step(target: str, batch_size: int = 32, format: str = "sorted") -> Case:
    """One step of V-MoE-S/32 on 224 x 224 images, its layers lowered for the target."""
    case = with_format(small_case(), format)
    data = replace(case.config.data, batch_size=batch_size)
    case = TrainCase(replace(case.config, data=data), case.image)
    config = case.config.validate()
    schedule = moegen.Schedule

    def lowered_for(**given):  # vmoe names a target itself: none, this machine's
        return schedule(**{**given, "target": target})

    def step(state, batch):
        compiled_layer.cache_clear()  # the shapes of the state have been asked of it
        with mock.patch.object(moegen, "Schedule", lowered_for):
            return make_train_step(config)(state, batch)

    shapes = [
        jax.eval_shape(lambda: init_state(config, case.image)),
        jax.eval_shape(lambda: batch_of(config, case.image)),
    ]
    return step, shapes


def moe_layer(
    target: str, part: str, schedule: dict[str, str], tokens: int, width: int, hidden: int
) -> Case:
    """A dropless layer of 8 experts and 2 choices in bf16: its outputs, or loss and gradients.

    `part` is "forward" or "training".
    """
    layer, x = layer_and_tokens(target, schedule, tokens, width)
    params = layer.abstract_params(x, experts=8, hidden=hidden)

    def loss(params, x):
        return jnp.sum(jnp.square(layer(params, x)[0].astype(jnp.float32)))

    def training(params, x):
        return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    calls = {"forward": lambda p, x: layer(p, x)[0], "training": training}
    return calls[part], [params, x]


def kept_bytes(target: str, schedule: dict[str, str], tokens: int, width: int, hidden: int) -> int:
    """What the forward of that layer hands to its backward, parameters left out."""
    layer, x = layer_and_tokens(target, schedule, tokens, width)
    return sum(layer.lower(x, experts=8, hidden=hidden).saved.values())


def layer_and_tokens(
    target: str, schedule: dict[str, str], tokens: int, width: int
) -> tuple[moegen.Layer, jax.ShapeDtypeStruct]:
    """The layer of `moe_layer`, and the shape of its tokens."""
    asked = moegen.Schedule(format="sorted", target=target, **schedule)
    router = noisy_top_k.bind(k=2, dropless=True, noise_std=0.0)
    x = jax.ShapeDtypeStruct((4, tokens // 4, width), jnp.bfloat16)
    return moegen.compile(router, mlp, asked), x
