"""Hash routing: a fixed function of the token's id picks the experts; nothing is learnt."""

from __future__ import annotations

import moegen as mg
from moegen.errors import ShapeError
from moegen.routers.common import place


@mg.router
def hash_layer(
    _x: mg.floating["S D"],
    ids: mg.i32["S"],
    mask: mg.bool_["S"] = None,
    *,
    k: int = 1,
    multiplier: int = 40503,
    capacity_factor: float = 1.25,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = True,
):
    """Each token goes to the k experts that its id hashes to, with weight 1/k.

    The hash is ids * multiplier mod E (Knuth's multiplicative hash); further choices are E/k
    experts apart, so a token's experts are distinct. `ids` are any integers that identify
    tokens, such as vocabulary ids or patch positions.
    Source: arXiv:2106.04426.
    """
    experts = mg.size("E")
    if not 1 <= k <= experts:
        raise ShapeError(f"hash_layer: k={k} is not in 1..E={experts}", fix=f"pick k <= {experts}")
    step = mg.iota("K", k) * (experts // k)
    expert = (ids * multiplier % experts + step) % experts
    weight = mg.cast(expert >= 0, "f32") / float(k)
    route, report = place(
        expert, weight, mask, k=k, capacity_factor=capacity_factor, capacity=capacity,
        multiple_of=multiple_of, rounding=rounding, dropless=dropless, batch_priority=False,
    )  # fmt: skip
    return route, report
