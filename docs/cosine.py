"""The router that docs/write-a-router.md writes."""

from __future__ import annotations

import moegen as mg
from moegen.routers.common import balance_loss, place


@mg.router
def cosine(
    x: mg.floating["S D"], project: mg.f32["D P"], centre: mg.f32["P E"],
    mask: mg.bool_["S"] = None, *, k: int = 2, temperature: float = 0.07, balance: float = 0.01,
    capacity_factor: float = 1.25, multiple_of: int | None = 4, batch_priority: bool = False,
):  # fmt: skip
    """Experts by the angle between projected tokens and their centres (arXiv:2204.09179)."""
    token = mg.dot(mg.cast(x, "f32"), project, over="D")
    angle = mg.dot(unit(token), unit(centre), over="P")
    gates = mg.softmax(angle / temperature, over="E")
    weight, expert = mg.top_k(gates, k, over="E")
    route, report = place(expert, weight, mask, k=k, capacity_factor=capacity_factor,
                          multiple_of=multiple_of, batch_priority=batch_priority)  # fmt: skip
    return route, {"auxiliary_loss": balance_loss(gates, expert) * balance, **report}


def unit(v):
    """Brings v to length 1 along P."""
    return v * mg.rsqrt(mg.sum(mg.square(v), over="P") + 1e-6)
