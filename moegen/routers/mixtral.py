"""Softmax top-k with renormalised weights: the router of Mixtral."""

from __future__ import annotations

import moegen as mg
from moegen.routers.common import (
    balance_loss,
    gate_entropy,
    place,
    renormalised,
    weighted_sum,
    z_loss,
)


@mg.router
def mixtral(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    mask: mg.bool_["S"] = None,
    *,
    k: int = 2,
    capacity_factor: float = 1.25,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = True,
    batch_priority: bool | str = False,
    balance_loss_weight: float = 0.02,
    z_loss_weight: float = 0.0,
):
    """Each token goes to its k best experts; weights are a softmax over those k logits.

    That is the same as the top-k of the full softmax divided by its sum, as computed here.
    Source: arXiv:2401.04088, section 2.1.
    """
    logits = mg.dot(mg.cast(x, "f32"), w, over="D")
    gates = mg.softmax(logits, over="E")
    top, expert = mg.top_k(gates, k, over="E")
    weight = renormalised(top)
    route, report = place(
        expert, weight, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    losses = {"balance_loss": balance_loss(gates, expert), "z_loss": z_loss(logits)}
    weights = {"balance_loss": balance_loss_weight, "z_loss": z_loss_weight}
    report["gate_entropy"] = gate_entropy(gates, mask)
    return route, {"auxiliary_loss": weighted_sum(weights, losses), **losses, **report}
