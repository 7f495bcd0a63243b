"""Partitioned ensemble: the experts are dealt out to members, each of which routes on its own."""

from __future__ import annotations

import jax

import moegen as mg
from moegen.errors import ShapeError
from moegen.routers.common import gate_entropy, place, weighted_sum
from moegen.routers.noisy_top_k import add_noise, gshard_loss, importance_loss, load_loss

BY_WIDTH = jax.nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
"""LeCun normal with D inputs, as one router over all experts has."""


@mg.router
def ensemble(
    x: mg.floating["S D"],
    w: mg.f32["D M Q"].init(BY_WIDTH),
    key: mg.Key = None,
    noise: mg.f32["S Q"] = None,
    mask: mg.bool_["S"] = None,
    *,
    k: int = 1,
    noise_std: float = 1.0,
    capacity_factor: float = 1.5,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = False,
    batch_priority: bool | str = False,
    importance_loss_weight: float = 0.0,
    load_loss_weight: float = 0.0,
    gshard_loss_weight: float = 0.0,
):
    """Each token goes to the k best of its member's Q = E / M experts.

    The token at position s belongs to member s mod M, which has experts m * Q to m * Q + Q - 1.
    Gates are a softmax over those, with normal noise of standard deviation noise_std / Q added in
    training. All members' choices share the capacity, which counts all tokens and all experts.

    Args:
      x: tokens, members alternating; the router computes in f32.
      w: router weights of each member, no bias.
      key: for the noise; None: no noise and no load loss.
      noise: a recorded standard normal draw that replaces the key's, for a token's own member.
      mask: False for padding, as for `noisy_top_k`.
      k: experts per token.
      noise_std: divided by Q before use.
      capacity_factor, capacity, multiple_of, rounding, dropless, batch_priority: as for
        `noisy_top_k`.
      importance_loss_weight, load_loss_weight, gshard_loss_weight: parts of auxiliary_loss.

    Returns:
      The route, and what `noisy_top_k` reports; the losses and auxiliary_loss are [M] per group.

    Raises:
      ShapeError: if the members do not divide the experts or the tokens, or k is more than Q.

    Source: arXiv:2110.03360, section 4.
    """
    members, experts = mg.size("M"), mg.size("Q")
    _check(members, experts, k)
    logits = mg.dot(_by_member(mg.cast(x, "f32"), members), w, over="D")
    sigma = noise_std / experts
    unit = None if noise is None else _by_member(noise, members)
    noisy = add_noise(logits, key, unit, sigma)
    gates = mg.softmax(noisy, over="Q")
    top, choice = mg.top_k(gates, k, over="Q")
    weight = mg.merge(top, "R M", "S")
    expert = mg.merge(choice + mg.iota("M") * experts, "R M", "S")
    route, report = place(
        expert, weight, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    losses = {
        "importance_loss": importance_loss(logits, experts="Q", tokens="R"),
        "gshard_loss": gshard_loss(gates, experts="Q", tokens="R"),
    }
    weights = {"importance_loss": importance_loss_weight, "gshard_loss": gshard_loss_weight}
    if noisy is not logits:
        losses["load_loss"] = load_loss(logits, noisy, sigma, k, experts="Q", tokens="R")
        weights["load_loss"] = load_loss_weight
    real = None if mask is None else _by_member(mask, members)
    report["gate_entropy"] = gate_entropy(gates, real, over="Q", tokens="R M")
    return route, {"auxiliary_loss": weighted_sum(weights, losses), **losses, **report}


def _by_member(x, members):
    """[S, ...] as [R, M, ...]: token s is round s // M of member s mod M."""
    return mg.split(x, "S", R=mg.size("S") // members, M=members)


def _check(members, experts, k):
    total, tokens = mg.size("E"), mg.size("S")
    if members * experts != total:
        raise ShapeError(
            f"ensemble: w has M={members} members with Q={experts} experts each, the layer has "
            f"E={total} experts",
            fix="choose an ensemble size M that divides E, and give w[D, M, E / M]",
        )
    if tokens % members:
        raise ShapeError(
            f"ensemble: a group of S={tokens} tokens does not hold all M={members} members equally",
            fix="make the tokens of a group a multiple of the ensemble size",
        )
    if not 1 <= k <= experts:
        raise ShapeError(
            f"ensemble: k={k} is not in 1..E/M={experts}",
            fix=f"pick k <= {experts}, or fewer members",
        )
