"""Token choice that serves tokens in a given order: the control for batch priority."""

from __future__ import annotations

import moegen as mg


@mg.router
def random_order(
    x: mg.f32["S D"],
    w: mg.f32["D E"],
    priority: mg.f32["S"],
    mask: mg.bool_["S"] = None,
    *,
    k: int = 1,
    capacity_factor: float = 1.05,
    multiple_of: int | None = 4,
):
    """V-MoE's router in testing, but tokens with the largest `priority` are served first.

    Like batch priority it takes no notice of where a token stands in its group; unlike it, it does
    not know which tokens have large gates.

    Returns:
      The route, and per group `dropped`, the share of choices without a slot.
    """
    gates = mg.softmax(mg.dot(x, w, over="D"), over="E")
    weight, expert = mg.top_k(gates, k, over="E")
    if mask is not None:
        expert = mg.where(mask, expert, -1)
    capacity = mg.capacity(k, capacity_factor, multiple_of=multiple_of)
    route = mg.assign(expert, weight, priority=priority, capacity=capacity)
    kept = mg.sum(mg.cast(mg.kept(route), "f32"), over="S K")
    asked = mg.sum(mg.cast(expert >= 0, "f32"), over="S K")
    return route, {"dropped": (asked - kept) / mg.maximum(asked, 1.0)}
