"""Top-k of sigmoid scores, renormalised: experts are scored without competing."""

from __future__ import annotations

import moegen as mg
from moegen.routers.common import balance_loss, place, renormalised


@mg.router
def sigmoid_top_k(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    mask: mg.bool_["S"] = None,
    *,
    k: int = 2,
    scale: float = 1.0,
    capacity_factor: float = 1.25,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = True,
    batch_priority: bool | str = False,
    balance_loss_weight: float = 0.0,
):
    """Each token goes to the k experts with the largest sigmoid(logit).

    Weights are the scores divided by their sum over the k, times `scale`. The balance loss
    takes the scores normalised over all experts as gates.
    Source: arXiv:2412.19437, section 2.1.2, without its bias.
    """
    score = mg.sigmoid(mg.dot(mg.cast(x, "f32"), w, over="D"))
    top, expert = mg.top_k(score, k, over="E")
    weight = renormalised(top) * scale
    route, report = place(
        expert, weight, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    balance = balance_loss(score / mg.sum(score, over="E"), expert)
    return route, {
        "auxiliary_loss": balance_loss_weight * balance,
        "balance_loss": balance,
        **report,
    }
