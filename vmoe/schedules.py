"""Learning rates over the steps of a run."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vmoe.config import ScheduleConfig
from vmoe.errors import UserError

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(config: ScheduleConfig, peak: float, total_steps: int) -> Schedule:
    """The learning rate, f32, as a function of the step, counted from 0.

    Raises:
      UserError: if the warmup leaves no step to decay over.
    """
    if config.name == "constant":
        return optax.constant_schedule(peak)
    if config.name == "warmup_exponential_decay":
        return _exponential(config, peak)
    if config.name == "rsqrt":
        if config.warmup_steps + config.cooldown_steps > total_steps:
            raise UserError(
                f"optim.schedule.warmup_steps={config.warmup_steps} and cooldown_steps="
                f"{config.cooldown_steps} do not fit into {total_steps} steps; fix: shorten them"
            )
        return rsqrt(
            peak, total_steps, warmup_steps=config.warmup_steps, timescale=config.timescale,
            cooldown_steps=config.cooldown_steps,
        )  # fmt: skip
    last = total_steps if config.decay_steps is None else config.decay_steps
    if last <= config.warmup_steps:
        raise UserError(
            f"optim.schedule.warmup_steps={config.warmup_steps} leaves nothing of {last} steps to "
            "decay over; fix: a shorter warmup or more steps"
        )
    if config.name == "warmup_cosine_decay":
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, config.warmup_steps, last, config.end_value
        )
    power = config.power if config.name == "warmup_polynomial_decay" else 1.0
    decay = optax.polynomial_schedule(peak, config.end_value, power, last - config.warmup_steps)
    return _after_warmup(config.warmup_steps, peak, decay)


def rsqrt(
    peak: float, total_steps: int, *, warmup_steps: int, timescale: int, cooldown_steps: int
) -> Schedule:
    """Peak / sqrt(1 + (step - warmup) / timescale), between a linear rise and a linear fall to 0.

    Past the run's end the rate stays 0; the released system goes on below 0 there.

    Source: arXiv:2106.04560, section 2.
    """

    def decay(step: jax.typing.ArrayLike) -> jax.Array:
        return peak * jax.lax.rsqrt((jnp.asarray(step, jnp.float32) + timescale) / timescale)

    def cooldown(step: jax.typing.ArrayLike) -> jax.Array:
        left = jnp.maximum(1.0 - jnp.asarray(step, jnp.float32) / cooldown_steps, 0.0)
        return decay(total_steps - cooldown_steps - warmup_steps) * left

    falling = _after_warmup(warmup_steps, peak, decay)
    if not cooldown_steps:
        return falling
    return optax.join_schedules([falling, cooldown], [total_steps - cooldown_steps])


def _exponential(config: ScheduleConfig, peak: float) -> Schedule:
    decay = optax.exponential_decay(
        peak, config.transition_steps, config.decay_rate, config.transition_begin,
        staircase=config.staircase, end_value=config.end_value or None,
    )  # fmt: skip
    return _after_warmup(config.warmup_steps, peak, decay)


def _after_warmup(steps: int, peak: float, decay: Schedule) -> Schedule:
    if not steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), decay], [steps])
