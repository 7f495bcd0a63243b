"""Expert choice: each expert takes the tokens it scores highest, so its buffer is always full."""

from __future__ import annotations

import moegen as mg
from moegen.errors import ShapeError
from moegen.routers.noisy_top_k import add_noise


@mg.router
def expert_choice(
    x: mg.floating["S D"],
    w: mg.f32["D E"],
    key: mg.Key = None,
    noise: mg.f32["S E"] = None,
    mask: mg.bool_["S"] = None,
    *,
    noise_std: float = 0.0,
    capacity_factor: float = 1.0,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
):
    """Each expert takes the C tokens with its largest gates; a token may have 0 to E experts.

    Gates are the softmax over experts of the logits, with normal noise of standard deviation
    noise_std / E added in training.

    Args:
      x: tokens; the router computes in f32.
      w: router weights, no bias.
      key: for the noise; None: no noise.
      noise: a recorded standard normal draw that replaces the key's.
      mask: False for padding; such tokens are taken last, with weight 0, and counted nowhere.
      noise_std: divided by E before use.
      capacity_factor: mean number of experts per token, before rounding.
      capacity: C itself, instead of the factor.
      multiple_of, rounding: see `moegen.compute_capacity`, here with S tokens.

    Returns:
      The route, and per group what `selection_report` counts.

    Raises:
      ShapeError: if C is more than the tokens of a group.

    Source: arXiv:2202.09368, section 3.2.
    """
    logits = mg.dot(mg.cast(x, "f32"), w, over="D")
    noisy = add_noise(logits, key, noise, noise_std / mg.size("E"))
    gates = mg.softmax(noisy, over="E")
    if capacity is None:
        capacity = mg.capacity(1, capacity_factor, rounding=rounding, multiple_of=multiple_of)
    return select_items(gates, capacity, mask)


def select_items(score, capacity, mask=None, weights=None):
    """Each expert takes the tokens with its `capacity` largest scores [S, E]; scores are >= 0.

    Weights are the scores taken, or those entries of `weights` [S, E]. A token with score 0 gets
    weight 0 and does not count as taken.

    Raises:
      ShapeError: if the capacity is more than the tokens of a group.
    """
    if capacity > mg.size("S"):
        raise ShapeError(
            f"expert choice: an expert takes capacity={capacity} different tokens, a group has "
            f"S={mg.size('S')}",
            fix="lower the capacity, its factor or multiple_of, or make groups larger",
        )
    ranked = score if mask is None else mg.where(mask, score, -1.0)
    best, token = mg.top_k(ranked, capacity, over="S", dim="C")
    best = mg.stop_gradient(best) if weights is not None else best
    weight = mg.where(
        best > 0.0, best if weights is None else mg.take(weights, token, over="S"), 0.0
    )
    return mg.assign_items(token, weight), selection_report(best, token, mask)


def selection_report(best, token, mask=None):
    """How tokens are spread: per group, over the tokens that are not padding.

    `load` [E] counts the tokens each expert took, `asked` the tokens, `dropped` is the share of
    them that no expert took. num_experts_per_item_{min,max} and
    ratio_processed_items_by_at_least_{t}_experts (t = 1, 2, 4, ... and E) count experts per token;
    {min,max}_selected_gate are of the scores `best` [E, C] of the tokens taken.
    """
    best, experts = mg.stop_gradient(best), mg.size("E")
    taken = best > 0.0
    hot = mg.one_hot(token, "S") * mg.cast(taken, "f32")
    count = mg.sum(hot, over="E C")
    real = mg.cast(count >= 0.0 if mask is None else mask, "f32")
    items = mg.maximum(mg.sum(real, over="S"), 1.0)
    thresholds = [2**i for i in range((experts - 1).bit_length())] + [experts]
    ratios = {
        f"ratio_processed_items_by_at_least_{t}_experts": mg.sum(
            mg.cast(count >= float(t), "f32"), over="S"
        )
        / items
        for t in thresholds
    }
    return {
        "load": mg.sum(mg.cast(taken, "f32"), over="C"),
        "asked": mg.sum(real, over="S"),
        "dropped": mg.sum(mg.cast(count == 0.0, "f32") * real, over="S") / items,
        "num_experts_per_item_min": mg.min(
            count if mask is None else mg.where(mask, count, float(experts)), over="S"
        ),
        "num_experts_per_item_max": mg.max(count, over="S"),
        "min_selected_gate": mg.min(mg.where(taken, best, 1.0), over="E C"),
        "max_selected_gate": mg.max(best, over="E C"),
        **ratios,
    }
