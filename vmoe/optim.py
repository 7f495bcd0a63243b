"""The optimiser: one optax chain from gradients to updates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vmoe.config import OptimConfig
from vmoe.schedules import make_schedule

EXPERTS = re.compile(r"(^|/)Moe/Mlp/")
"""Weights whose leading dim counts experts."""


def make_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """Gradient scale -> clip -> adam, sgd or adafactor -> weight decay -> -lr -> frozen to 0.

    A frozen weight's gradient still counts in the clipped norm. What has changed is averaged, if
    asked for.

    Source: arXiv:2106.05974, appendix B.
    """
    schedule = make_schedule(config.schedule, config.lr, total_steps)
    return optax.chain(
        _scale_by_name(config.gradient_scale),
        _clip(config),
        _RULES[config.name](config),
        _decay_by_name(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
        _freeze(config),
        _average(config.average_decay),
    )


class AverageState(NamedTuple):
    """The running average of the weights, a part of the optimiser's state."""

    average: Any


def weights_to_evaluate(params: Any, opt_state: Any) -> Any:
    """The running average of the weights where there is one, the weights themselves otherwise."""
    parts = jax.tree.leaves(opt_state, is_leaf=lambda part: isinstance(part, AverageState))
    return next((part.average for part in parts if isinstance(part, AverageState)), params)


def named(tree: Any) -> Any:
    """The tree with each leaf replaced by its path, such as "head/kernel"."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "/".join(_key(k) for k in path), tree)


def first_match(pairs: Sequence[tuple[str, float]], path: str, default: float) -> float:
    """The number beside the first pattern found in the path."""
    return next((value for pattern, value in pairs if re.search(pattern, path)), default)


def _clip(config: OptimConfig) -> optax.GradientTransformation:
    norm, value = config.clip_norm, config.clip_value
    return optax.chain(
        optax.identity() if norm is None else optax.clip_by_global_norm(norm),
        optax.identity() if value is None else optax.clip(value),
    )


def _adam(config: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.momentum_dtype)


def _sgd(config: OptimConfig) -> optax.GradientTransformation:
    if not config.momentum:
        return optax.identity()
    return optax.trace(config.momentum, config.nesterov, jnp.dtype(config.momentum_dtype))


def _adafactor(config: OptimConfig) -> optax.GradientTransformation:
    """Adafactor without relative step size, its decay rate capped, momentum as a plain average.

    Source: arXiv:1804.04235 with the changes of arXiv:2106.04560, section 3.4.
    """

    def decay_rate(step: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(config.max_decay_rate, 1.0 - (step + 1.0) ** -exponent)

    factored = optax.scale_by_factored_rms(
        min_dim_size_to_factor=config.min_dim_to_factor, decay_rate_fn=decay_rate
    )
    momentum = optax.ema(
        config.momentum, debias=False, accumulator_dtype=jnp.dtype(config.momentum_dtype)
    )
    return optax.chain(_per_expert(factored), momentum if config.momentum else optax.identity())


_RULES = {"adam": _adam, "sgd": _sgd, "adafactor": _adafactor}


def _per_expert(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Treats each expert's weight as one of its own, so that no statistic mixes experts."""

    def init(params: Any) -> Any:
        # A dense model has no expert, and vmap nothing to map over.
        return jax.vmap(inner.init)(params) if jax.tree.leaves(params) else inner.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        each = jax.vmap(inner.update) if jax.tree.leaves(updates) else inner.update
        return each(updates, state, params)

    batched = optax.GradientTransformation(init, update)
    return optax.partition(
        {"expert": batched, "other": inner},
        lambda tree: jax.tree.map(
            lambda p: "expert" if EXPERTS.search(p) else "other", named(tree)
        ),
    )


def _scale_by_name(pairs: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda g, p: g * first_match(pairs, p, 1.0), updates, named(updates))

    return optax.stateless(scale) if pairs else optax.identity()


def _decay_by_name(pairs: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    def decay(updates: Any, params: Any) -> Any:
        rates = jax.tree.map(lambda path: first_match(pairs, path, 0.0), named(params))
        return jax.tree.map(lambda u, p, r: u + r * p if r else u, updates, params, rates)

    return optax.stateless(decay) if pairs else optax.identity()


def is_frozen(config: OptimConfig, path: str) -> bool:
    """Whether the weight of this path, such as "head/kernel", is left as it is."""
    chosen = not config.trainable or any(re.search(p, path) for p in config.trainable)
    return not chosen or any(re.search(p, path) for p in config.frozen)


def _freeze(config: OptimConfig) -> optax.GradientTransformation:
    def freeze(updates: Any, params: Any) -> Any:
        paths = named(updates)
        return jax.tree.map(
            lambda u, p: jnp.zeros_like(u) if is_frozen(config, p) else u, updates, paths
        )

    return optax.stateless(freeze) if config.trainable or config.frozen else optax.identity()


def _average(decay: float | None) -> optax.GradientTransformation:
    """Leaves the updates as they are, and averages the weights that they lead to.

    The average begins at the first weights. Biases that `vmoe.balance` moves after the update
    enter it one step later.
    """
    if decay is None:
        return optax.identity()

    def update(updates: Any, state: AverageState, params: Any) -> tuple[Any, AverageState]:
        after = optax.apply_updates(params, updates)
        return updates, AverageState(optax.incremental_update(after, state.average, 1.0 - decay))

    # A copy: the step that consumes the weights may not consume the average with them.
    return optax.GradientTransformation(
        lambda params: AverageState(jax.tree.map(jnp.copy, params)), update
    )


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
