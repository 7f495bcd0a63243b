"""What training carries from step to step, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vmoe import model
from vmoe.adversarial import perturbed
from vmoe.balance import move_biases
from vmoe.config import CheckpointConfig, DataConfig, TrainConfig
from vmoe.ensemble import repeat_images
from vmoe.gradients import gradients
from vmoe.init_config import InitFromConfig
from vmoe.layers.params import named_key
from vmoe.losses import LOSSES, targets, training_loss
from vmoe.mixup import mixup
from vmoe.optim import make_optimizer, weights_to_evaluate
from vmoe.schedules import make_schedule
from vmoe.sharding import everywhere, keep_places, make_mesh, on_mesh

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that a step reads and writes.

    Attributes:
      step: i32[], steps taken.
      params: the model's weights.
      opt_state: the optimiser's.
      key: raw data, u32[...], of the key that every step derives its own from.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array

    @property
    def evaluated(self) -> Any:
        """The weights to evaluate: their running average where optim.average_decay is set."""
        return weights_to_evaluate(self.params, self.opt_state)


def init_state(config: TrainConfig, image_shape: tuple[int, int, int]) -> TrainState:
    """The state before the first step, drawn from config.seed."""
    keys = jax.random.split(jax.random.key(config.seed))
    return _compiled_draw(_of_a_step(config), tuple(image_shape))(*keys)


@cache
def _compiled_draw(
    config: TrainConfig, image_shape: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array], TrainState]:
    """The state as a function of the keys: drawing weights takes seconds to compile."""

    def draw(init_key: jax.Array, step_key: jax.Array) -> TrainState:
        params = model.init(config.model, init_key, image_shape)
        opt_state = make_optimizer(config.optim, config.steps).init(params)
        return TrainState(
            jnp.zeros((), jnp.int32), params, opt_state, jax.random.key_data(step_key)
        )

    return jax.jit(draw)


TrainStep = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]


def make_train_step(config: TrainConfig) -> TrainStep:
    """The compiled step (state, batch) -> (next state, metrics). It consumes the state.

    Metrics are scalars f32[], and the load of each MoE block, f32[E].

    The key of step i is fold_in(key, i): it depends on nothing else, so that a run goes on from
    a checkpoint bit for bit as it would have. Configs that differ in nothing a step computes
    share one compiled step.
    """
    return _compiled_step(_of_a_step(config))


def _of_a_step(config: TrainConfig) -> TrainConfig:
    """The config with nothing left that changes no step."""
    return replace(
        config, seed=0, workdir="", log_every=1, eval_every=0,
        data=DataConfig(), checkpoint=CheckpointConfig(), init_from=InitFromConfig(),
    )  # fmt: skip


@cache
def _compiled_step(config: TrainConfig) -> TrainStep:
    return step_on(config, make_mesh(config.mesh))


def step_on(config: TrainConfig, mesh: Mesh | None) -> Any:
    """`make_train_step` on a mesh of any devices, such as ones to compile for, as a jax.jit."""
    optimizer = make_optimizer(config.optim, config.steps)
    schedule = make_schedule(config.optim.schedule, config.optim.lr, config.steps)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        shares = targets(batch["labels"], config.model.num_classes)
        batch = mixup(config.mixup, batch | {"labels": shares}, named_key(key, "mixup"))
        objective = partial(trained_on, config)
        with on_mesh(mesh):
            grads, metrics, routing = gradients(
                objective, state.params, batch, key, config.microbatches
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = move_biases(config, state.params, params, routing)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        metrics |= gradient_norms(grads)
        after = TrainState(state.step + 1, params, opt_state, state.key)
        return keep_places(mesh, after), everywhere(mesh, metrics)

    return jax.jit(step, donate_argnums=0)


def trained_on(
    config: TrainConfig, params: Any, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, tuple[Metrics, dict[str, Any]]]:
    """`loss`, of images first changed against the model if the config says so."""
    images = perturbed(
        config.adversarial,
        lambda x: loss(config, params, batch | {"images": x}, key)[0],
        batch["images"],
    )
    return loss(config, params, batch | {"images": jax.lax.stop_gradient(images)}, key)


def loss(
    config: TrainConfig, params: Any, batch: dict[str, jax.Array], key: jax.Array
) -> tuple[jax.Array, tuple[Metrics, dict[str, Any]]]:
    """The training loss of a batch, the scalars reported of it, and each MoE block's report."""
    logits, routing = model.apply(config.model, params, batch["images"], key=key, train=True)
    wanted = targets(batch["labels"], config.model.num_classes, config.label_smoothing)
    wanted = repeat_images(wanted, config.model.ensemble_size)
    main = LOSSES[config.loss](logits, wanted)
    total, auxiliary = training_loss(main, routing)
    metrics = {
        "loss": total,
        "main_loss": jnp.mean(main),
        "accuracy": jnp.mean(jnp.argmax(logits, -1) == jnp.argmax(wanted, -1)),
    }
    if "auxiliary_loss" in routing:
        metrics["auxiliary_loss"] = auxiliary
    metrics |= {f"rms/{layer}": size for layer, size in routing["rms"].items()}
    for block, report in routing.items():
        if isinstance(report, dict):
            metrics |= _block_scalars(block, report)
    return total, (metrics, routing)


def gradient_norms(grads: Any) -> Metrics:
    """The norm of all gradients, and of each part's: embedding, every encoder block, head."""
    parts = {name: part for name, part in grads.items() if name != "Encoder"}
    parts |= grads.get("Encoder", {})
    norms = {f"grad_norm/{name}": optax.tree.norm(part) for name, part in parts.items()}
    return {"grad_norm": optax.tree.norm(grads)} | norms


def _block_scalars(block: str, report: dict[str, jax.Array]) -> Metrics:
    """Of a router's report, the means over groups, and each expert's share of the load f32[E]."""
    wanted = ("importance_loss", "load_loss", "gshard_loss", "dropped", "gate_entropy")
    found = {f"{block}/{name}": jnp.mean(report[name]) for name in wanted if name in report}
    if "load" in report:
        load = jnp.sum(report["load"], axis=0)
        found[f"{block}/load"] = load / jnp.maximum(jnp.sum(load), 1.0)
    return found
