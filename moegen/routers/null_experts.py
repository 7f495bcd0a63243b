"""Null experts: some choices compute nothing, so a token uses as many experts as it needs."""

from __future__ import annotations

import moegen as mg
from moegen.routers.common import place


@mg.router
def null_experts(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    w_null: mg.f32["D Z"],
    mask: mg.bool_["S"] = None,
    *,
    k: int = 2,
    capacity_factor: float = 1.25,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = True,
    batch_priority: bool | str = False,
    balance_loss_weight: float = 0.01,
):
    """Top-k over E true and Z null experts; a choice beyond E takes no place and adds nothing.

    Weights are renormalised over a token's true experts. The balance loss sees each null
    expert with the mean share and gate of all null experts, so that which of them is chosen
    does not matter. Source: arXiv:2406.13233 (AdaMoE), section 3.
    """
    seen = mg.cast(x, "f32")
    experts, nulls = mg.size("E"), mg.size("Z")
    logits = mg.concat(mg.dot(seen, w, over="D"), mg.dot(seen, w_null, over="D"), ("E", "Z"), "A")
    gates = mg.softmax(logits, over="A")
    top, choice = mg.top_k(gates, k, over="A")
    true = mg.cast(choice < experts, "f32")
    weight = top * true / mg.maximum(mg.sum(top * true, over="K"), 1e-9)
    expert = mg.where(choice < experts, choice, -1)
    route, report = place(
        expert, weight, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    balance = _balance(gates, choice, experts, nulls)
    return route, {
        "auxiliary_loss": balance_loss_weight * balance,
        "balance_loss": balance,
        "null_share": 1.0 - mg.mean(mg.mean(true, over="K"), over="S"),
        **report,
    }


def _balance(gates, choice, experts, nulls):
    """Balance loss over E + Z experts, null experts averaged."""
    share = mg.mean(mg.mean(mg.one_hot(choice, "A"), over="K"), over="S")
    gate = mg.mean(gates, over="S")
    null = mg.cast(mg.iota("A") >= experts, "f32")
    null_share, null_gate = mg.sum(share * null, over="A"), mg.sum(gate * null, over="A")
    true = mg.sum(share * gate * (1.0 - null), over="A")
    return (true + null_share * null_gate / float(nulls)) * float(experts + nulls)
