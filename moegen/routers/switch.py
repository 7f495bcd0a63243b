"""Top-1 with jitter: the router of the Switch Transformer."""

from __future__ import annotations

import moegen as mg
from moegen.routers.common import balance_loss, gate_entropy, place, weighted_sum, z_loss


@mg.router
def switch(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    key: mg.Key = None,
    mask: mg.bool_["S"] = None,
    *,
    jitter: float = 0.01,
    capacity_factor: float = 1.25,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = False,
    batch_priority: bool | str = False,
    balance_loss_weight: float = 0.01,
    z_loss_weight: float = 0.0,
):
    """Each token goes to its best expert, weighted by that expert's gate.

    With a key, the router sees its input multiplied by uniform noise in [1-jitter, 1+jitter].
    Source: arXiv:2101.03961, section 2; z-loss: arXiv:2202.08906.
    """
    seen = mg.cast(x, "f32")
    if key is not None and jitter > 0:
        seen = seen * (1.0 - jitter + 2.0 * jitter * mg.uniform(key, like=seen))
    logits = mg.dot(seen, w, over="D")
    gates = mg.softmax(logits, over="E")
    weight, expert = mg.top_k(gates, 1, over="E")
    route, report = place(
        expert, weight, mask, k=1, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless,
        batch_priority=batch_priority,
    )  # fmt: skip
    losses = {"balance_loss": balance_loss(gates, expert), "z_loss": z_loss(logits)}
    weights = {"balance_loss": balance_loss_weight, "z_loss": z_loss_weight}
    report["gate_entropy"] = gate_entropy(gates, mask)
    return route, {"auxiliary_loss": weighted_sum(weights, losses), **losses, **report}
