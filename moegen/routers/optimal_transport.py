"""Optimal transport: a plan that loads all experts alike decides where tokens go."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import moegen as mg
from moegen.errors import ShapeError, TraceError
from moegen.routers.common import place
from moegen.routers.expert_choice import select_items
from moegen.routers.noisy_top_k import add_noise

METHODS = ("sinkhorn", "k_sparse", "squared_l2")
RATE, TOLERANCE = 1e-2, 1e-3
"""Of the semi-dual solver: Adam's step size, and the gradient norm that ends it."""


@mg.router
def transport_token_choice(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    key: mg.Key = None,
    noise: mg.f32["S E"] = None,
    mask: mg.bool_["S"] = None,
    *,
    k: int = 2,
    method: str = "k_sparse",
    iterations: int = 20,
    use_softmax_combine_weights: bool = True,
    noise_std: float = 0.0,
    capacity_factor: float = 1.0,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = False,
    batch_priority: bool | str = False,
):
    """Each token goes to the k experts that a balanced transport plan sends most of it to.

    In the plan [S, E] every token sends mass 1 and every expert receives S / E, as far as the
    solver's iterations get. No gradient flows through the plan.

    Args:
      x, w, key, noise, mask, noise_std: as for `noisy_top_k`; padding sends no mass.
      k: experts per token; with k_sparse, also how many a token may send mass to.
      method: one of METHODS: entropic, at most k entries per token, or squared 2-norm.
      iterations: of the solver, at most.
      use_softmax_combine_weights: the weights are the gates; else the plan's, and then the
        router learns nothing from the output.
      capacity_factor, capacity, multiple_of, rounding, dropless, batch_priority: as for
        `noisy_top_k`.

    Returns:
      The route, and per group `load` [E], `dropped`, and what `plan_report` counts.

    Source: arXiv:2209.15466, sections 3 to 5.
    """
    logits, gates = _gates(x, w, key, noise, noise_std)
    top = min(k, mg.size("E")) if method == "k_sparse" else mg.size("E")
    plan = _plan(method, logits, gates, mask, token_semi_dual, top, iterations)
    sent, choice = mg.top_k(plan, k, over="E")
    expert = mg.where(sent > 0.0, choice, -1)
    weight = mg.take(gates, choice, over="E") if use_softmax_combine_weights else sent
    route, report = place(
        expert, weight, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    return route, {**report, **plan_report(plan, mask)}


@mg.router
def transport_expert_choice(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    key: mg.Key = None,
    noise: mg.f32["S E"] = None,
    mask: mg.bool_["S"] = None,
    *,
    method: str = "k_sparse",
    iterations: int = 20,
    use_softmax_combine_weights: bool = True,
    noise_std: float = 0.0,
    capacity_factor: float = 1.0,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
):
    """Each expert takes the C tokens that a balanced transport plan sends most to it.

    The plan is that of `transport_token_choice`, but with k_sparse it is the experts that have
    a limit: each receives mass from at most C tokens.

    Args:
      x, w, key, noise, mask, noise_std: as for `noisy_top_k`; padding sends no mass.
      method, iterations, use_softmax_combine_weights: as for `transport_token_choice`.
      capacity_factor, capacity, multiple_of, rounding: as for `expert_choice`.

    Returns:
      The route, and per group what `expert_choice` reports, {min,max}_selected_gate being of
      the plan, and num_items_per_expert_{min,max,avg}, from how many tokens experts receive.

    Raises:
      ShapeError: if C is more than the tokens of a group.

    Source: arXiv:2209.15466, sections 3 to 5.
    """
    logits, gates = _gates(x, w, key, noise, noise_std)
    if capacity is None:
        capacity = mg.capacity(1, capacity_factor, rounding=rounding, multiple_of=multiple_of)
    top = min(capacity, mg.size("S")) if method == "k_sparse" else mg.size("S")
    plan = _plan(method, logits, gates, mask, expert_semi_dual, top, iterations)
    weights = gates if use_softmax_combine_weights else plan
    route, report = select_items(plan, capacity, mask, weights)
    counts = plan_report(plan, mask)
    return route, {**report, **{n: c for n, c in counts.items() if n.startswith("num_items")}}


def _gates(x, w, key, noise, noise_std):
    logits = mg.dot(mg.cast(x, "f32"), w, over="D")
    noisy = add_noise(logits, key, noise, noise_std / mg.size("E"))
    return noisy, mg.softmax(noisy, over="E")


def _plan(method, logits, gates, mask, semi_dual, top, iterations):
    """The transport plan [S, E] by the method asked for, outside the gradient."""
    if method not in METHODS:
        raise TraceError(f'method "{method}" is unknown', fix=f"use one of {', '.join(METHODS)}")
    if iterations < 1:
        raise ShapeError(f"iterations={iterations} gives no plan", fix="give 1 or more")
    mass = mg.cast(mg.iota("S") >= 0 if mask is None else mask, "f32")
    if method == "sinkhorn":
        plan = mg.call(sinkhorn, logits, mass, out=mg.f32["S E"], iterations=iterations)
    else:
        settings = {"top": top, "iterations": iterations}
        plan = mg.call(semi_dual, gates, mass, out=mg.f32["S E"], **settings)
    return mg.stop_gradient(plan)


def plan_report(plan, mask=None):
    """Where the plan has mass: num_experts_per_item and num_items_per_expert, min, max and avg."""
    sends = mg.cast(plan > 0.0, "f32")
    experts, items = mg.sum(sends, over="E"), mg.sum(sends, over="S")
    least, average = experts, mg.mean(experts, over="S")
    if mask is not None:
        least = mg.where(mask, experts, float(mg.size("E")))
        average = average / mg.maximum(mg.mean(mg.cast(mask, "f32"), over="S"), 1e-9)
    return {
        "num_experts_per_item_min": mg.min(least, over="S"),
        "num_experts_per_item_max": mg.max(experts, over="S"),
        "num_experts_per_item_avg": average,
        "num_items_per_expert_min": mg.min(items, over="E"),
        "num_items_per_expert_max": mg.max(items, over="E"),
        "num_items_per_expert_avg": mg.mean(items, over="E"),
    }


# --- solvers: plain JAX, for one group -----------------------------------------------------


def sinkhorn(logits: jax.Array, mass: jax.Array, *, iterations: int) -> jax.Array:
    """The plan u * exp(logits) * v after alternately fitting both marginals, the tokens' last.

    Computed in logarithms, so that no logit is too large.

    Args:
      logits: f32[S, E].
      mass: f32[S], what each token sends; 0 for padding. Experts receive equal shares.
      iterations: of fitting both.

    Source: Sinkhorn's algorithm as in arXiv:1306.0895.
    """
    log_sent, log_share = jnp.log(mass), jnp.log(mass.sum() / logits.shape[1])

    def fit(_: int, rows: jax.Array) -> jax.Array:
        columns = log_share - jax.nn.logsumexp(logits + rows[:, None], axis=0)
        return log_sent - jax.nn.logsumexp(logits + columns, axis=1)

    rows = jax.lax.fori_loop(0, iterations - 1, fit, jnp.where(mass > 0, 0.0, -jnp.inf))
    columns = log_share - jax.nn.logsumexp(logits + rows[:, None], axis=0)
    plan = mass[:, None] * jax.nn.softmax(logits + columns, axis=1)
    return jnp.where(mass[:, None] > 0, plan, 0.0)  # a group of padding has columns of NaN


def token_semi_dual(gates: jax.Array, mass: jax.Array, *, top: int, iterations: int) -> jax.Array:
    """The plan f32[S, E] in which each token sends to at most `top` experts; see `semi_dual`."""
    received = jnp.full(gates.shape[1], mass.sum() / gates.shape[1])
    return semi_dual(gates, mass, received, top, iterations)


def expert_semi_dual(gates: jax.Array, mass: jax.Array, *, top: int, iterations: int) -> jax.Array:
    """The plan f32[S, E] in which each expert receives from at most `top` tokens."""
    received = jnp.full(gates.shape[1], mass.sum() / gates.shape[1])
    score = jnp.where(mass > 0, gates.T, -1e9)  # padding is in nobody's support
    return semi_dual(score, received, mass, top, iterations).T


def semi_dual(
    score: jax.Array, rows: jax.Array, columns: jax.Array, top: int, iterations: int
) -> jax.Array:
    """Maximises <score, plan> - |plan|^2 / 2 by Adam on the prices of the columns, from 0.

    Row marginals hold exactly, those of the columns as far as Adam comes before the norm of
    their error is at most TOLERANCE.

    Args:
      score: f32[P, Q].
      rows: f32[P], the mass of each row.
      columns: f32[Q], the mass of each column.
      top: entries of a row that may have mass.
      iterations: at most.

    Source: arXiv:2209.15466, equation 9 (semi-dual); arXiv:1412.6980 (Adam).
    """

    def plan(price: jax.Array) -> jax.Array:
        return simplex_projection(score + price, rows, top)

    def go_on(state: Any) -> Any:
        step, error = state[0], state[1]
        return (step < iterations) & (error > TOLERANCE)

    def adam(state: Any) -> Any:
        step, _, price, first, second = state
        slope = plan(price).sum(0) - columns
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        step = step + 1
        mean, power = first / (1 - 0.9**step), second / (1 - 0.999**step)
        price = price - RATE * mean / (jnp.sqrt(power) + 1e-8)
        return step, jnp.linalg.norm(slope), price, first, second

    zeros = jnp.zeros(score.shape[1], score.dtype)
    start = (jnp.int32(0), jnp.float32(jnp.inf), zeros, zeros, zeros)
    return plan(jax.lax.while_loop(go_on, adam, start)[2])


def simplex_projection(z: jax.Array, mass: jax.Array, top: int) -> jax.Array:
    """Each row's `top` largest entries moved to the nearest non-negative ones of that sum.

    Args:
      z: f32[P, Q].
      mass: f32[P], the sum of each row of the result; 0 gives a row of 0.
      top: other entries become 0.

    Source: arXiv:1309.1541 (simplex), arXiv:1206.1529 (sparse simplex).
    """
    value, index = jax.lax.top_k(z, top)
    total = jnp.where(mass > 0, mass, 1.0)[:, None]
    excess = (jnp.cumsum(value, axis=1) - total) / jnp.arange(1, top + 1)
    support = jnp.sum(value > excess, axis=1, keepdims=True)
    shift = jnp.take_along_axis(excess, support - 1, axis=1)
    sent = jnp.where(mass[:, None] > 0, jnp.maximum(value - shift, 0.0), 0.0)
    return jnp.zeros_like(z).at[jnp.arange(len(z))[:, None], index].set(sent)
