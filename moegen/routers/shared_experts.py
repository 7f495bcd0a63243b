"""Shared experts beside routed ones: the first experts serve every token."""

from __future__ import annotations

import moegen as mg
from moegen.errors import ShapeError
from moegen.routers.common import usage


@mg.router
def shared_experts(
    x: mg.floating["S D"],
    w: mg.f32["D R"],
    mask: mg.bool_["S"] = None,
    *,
    shared: int = 1,
    k: int = 2,
    balance_loss_weight: float = 0.01,
):
    """Experts 0..shared-1 take every token with weight 1; k of the R others are chosen by gate.

    The layer has E = shared + R experts. It is dropless: a capacity would drop tokens from the
    shared experts first. Weights of the chosen ones are their raw gates.
    Source: arXiv:2401.06066 (DeepSeekMoE), section 3.2.
    """
    experts, routed = mg.size("E"), mg.size("R")
    if experts != shared + routed:
        raise ShapeError(
            f"shared_experts: E={experts} is not shared={shared} + R={routed}",
            fix=f"initialise the layer with experts={shared + routed}",
        )
    gates = mg.softmax(mg.dot(mg.cast(x, "f32"), w, over="D"), over="R")
    top, chosen = mg.top_k(gates, k, over="R", dim="L")
    always = mg.iota("H", shared) + mg.argmax(gates, over="R") * 0
    expert = mg.concat(always, chosen + shared, ("H", "L"), "K")
    weight = mg.concat(mg.cast(always >= 0, "f32"), top, ("H", "L"), "K")
    if mask is not None:
        expert = mg.where(mask, expert, -1)
    route = mg.assign(expert, weight, capacity=None)
    share = mg.mean(mg.mean(mg.one_hot(chosen, "R"), over="L"), over="S")
    balance = mg.sum(share * mg.mean(gates, over="S"), over="R") * float(routed)
    return route, {
        "auxiliary_loss": balance_loss_weight * balance,
        "balance_loss": balance,
        **usage(route, expert),
    }
