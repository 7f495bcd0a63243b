"""Noisy top-k token choice with batch priority: the router of V-MoE."""

from __future__ import annotations

import moegen as mg
from moegen.routers.common import gate_entropy, place, weighted_sum, within_budget


@mg.router
def noisy_top_k(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    key: mg.Key = None,
    noise: mg.f32["S E"] = None,
    mask: mg.bool_["S"] = None,
    budget: mg.f32["S"] = None,
    *,
    k: int = 1,
    noise_std: float = 1.0,
    capacity_factor: float = 1.05,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = False,
    batch_priority: bool | str = False,
    scope: str = "group",
    importance_loss_weight: float = 0.0,
    load_loss_weight: float = 0.0,
    gshard_loss_weight: float = 0.0,
):
    """Each token goes to the k experts with the largest gates.

    Gates are the softmax of the logits, with normal noise of standard deviation
    noise_std / E added in training; the weights are the raw gates, not renormalised.

    Args:
      x: tokens; the router computes in f32.
      w: router weights, no bias.
      key: for the noise. None: no noise and no load loss.
      noise: a recorded standard normal draw that replaces the key's.
      mask: False for padding; such tokens take no slot and are not counted. The losses do count
        them: they are for training, which has no padding.
      budget: the share of its group's tokens that may be served, in 0..1, the same for all tokens
        of a group. Those with the largest gates are; the others take no slot, and are dropped. A
        run-time value: with dropless=True in the sorted format one program takes less time for
        a smaller one.
      k: experts per token.
      noise_std: divided by E before use.
      capacity_factor, multiple_of, rounding: see `moegen.compute_capacity`.
      capacity: rows per expert and group, instead of the factor.
      dropless: no capacity at all.
      batch_priority: largest gate first (BPR), "sum" for the largest sum of the k gates, or
        False for token order.
      scope: "group", each group has its own buffers; or "batch", all groups of the call share
        them, on whatever devices they are: G times the capacity, by one order of all tokens.
      importance_loss_weight, load_loss_weight, gshard_loss_weight: parts of auxiliary_loss.

    Returns:
      The route, and per group: the three losses (load_loss only with noise), their weighted
      sum auxiliary_loss, `load` [E] (choices kept per expert), `asked` (choices), `dropped`
      (share of them without a slot), `gate_entropy` (mean over tokens, 0..1).

    Source: arXiv:2106.05974, sections 2, 3 and appendix A; gshard loss: arXiv:2006.16668.
    """
    logits = mg.dot(mg.cast(x, "f32"), w, over="D")
    sigma = noise_std / mg.size("E")
    noisy = add_noise(logits, key, noise, sigma)
    gates = mg.softmax(noisy, over="E")
    weight, expert = mg.top_k(gates, k, over="E")
    served = None if budget is None else within_budget(weight, mask, budget)
    route, report = place(
        expert, weight, mask, served, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority, scope=scope,
    )  # fmt: skip
    losses = {"importance_loss": importance_loss(logits), "gshard_loss": gshard_loss(gates)}
    weights = {"importance_loss": importance_loss_weight, "gshard_loss": gshard_loss_weight}
    if noisy is not logits:
        losses["load_loss"] = load_loss(logits, noisy, sigma, k)
        weights["load_loss"] = load_loss_weight
    report["gate_entropy"] = gate_entropy(gates, mask)
    return route, {"auxiliary_loss": weighted_sum(weights, losses), **losses, **report}


def add_noise(logits, key, noise, sigma):
    """Adds normal noise; returns the logits themselves where there is none."""
    if sigma == 0.0 or (key is None and noise is None):
        return logits
    unit = mg.normal(key, like=logits) if noise is None else noise
    return logits + unit * sigma


def importance_loss(logits, *, experts="E", tokens="S"):
    """Squared coefficient of variation of the experts' summed gates, without noise."""
    return mg.cv2(mg.sum(mg.softmax(logits, over=experts), over=tokens), over=experts)


def load_loss(logits, noisy, sigma, k, *, experts="E", tokens="S"):
    """The same of the chance that each expert is chosen if its noise were drawn again.

    The threshold is the k-th largest noisy logit.
    """
    top, _ = mg.top_k(noisy, k, over=experts)
    threshold = mg.min(top, over="K")
    chance = mg.normal_cdf((logits - threshold) / sigma)  # 1 - cdf(-z) would lose the tail
    return mg.cv2(mg.mean(chance, over=tokens), over=experts)


def gshard_loss(gates, *, experts="E", tokens="S"):
    """E^2 times the mean over experts of (share of first choices) * (mean gate)."""
    first = mg.one_hot(mg.argmax(gates, over=experts), experts)
    share, gate = mg.mean(first, over=tokens), mg.mean(gates, over=tokens)
    return mg.mean(share * gate, over=experts) * float(mg.size(experts) ** 2)
