"""Group-limited top-k: a token's experts lie in few groups, so that it travels to few devices."""

from __future__ import annotations

import moegen as mg
from moegen.errors import ShapeError
from moegen.routers.common import balance_loss, place


@mg.router
def group_limited(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    mask: mg.bool_["S"] = None,
    *,
    k: int = 2,
    groups: int = 2,
    groups_per_token: int = 1,
    scale: float = 1.0,
    capacity_factor: float = 1.25,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = True,
    batch_priority: bool | str = False,
    balance_loss_weight: float = 0.003,
):
    """Each token picks groups by their best expert, then its k experts within those groups.

    Expert e belongs to group e // (E / groups). Weights are the raw gates times `scale`.
    Source: arXiv:2405.04434, section 2.1.2 (device-limited routing).
    """
    experts = mg.size("E")
    if experts % groups or k > groups_per_token * (experts // max(groups, 1)):
        raise ShapeError(
            f"group_limited: E={experts}, groups={groups}, k={k}, "
            f"groups_per_token={groups_per_token} do not fit",
            fix="groups must divide E, and groups_per_token * E / groups be at least k",
        )
    gates = mg.softmax(mg.dot(mg.cast(x, "f32"), w, over="D"), over="E")
    by_group = mg.split(gates, "E", H=groups, Q=experts // groups)
    best = mg.max(mg.stop_gradient(by_group), over="Q")
    _, group = mg.top_k(best, groups_per_token, over="H", dim="J")
    allowed = mg.sum(mg.one_hot(group, "H"), over="J") > 0.0
    limited = mg.merge(mg.where(allowed, by_group, -1.0), "H Q", "E")
    weight, expert = mg.top_k(limited, k, over="E")
    route, report = place(
        expert, weight * scale, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    balance = balance_loss(gates, expert)
    return route, {
        "auxiliary_loss": balance_loss_weight * balance,
        "balance_loss": balance,
        **report,
    }
