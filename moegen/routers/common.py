"""What token-choice routers share: placing choices into buffers, and counting them."""

from __future__ import annotations

import functools
import math
import operator

import moegen as mg

NEVER = 1e30
"""Above any gate: nobody reaches it."""


def place(
    expert,
    weight,
    mask=None,
    served=None,
    *,
    k: int,
    capacity_factor: float,
    capacity: int | None = None,
    multiple_of: int | None = 4,
    rounding: str = "ceil",
    dropless: bool = False,
    batch_priority: bool | str = False,
    scope: str = "group",
):
    """Assigns choices [S, K] to the experts' buffers; returns the route and a report.

    Masked tokens take no place and are not counted. With `served` bool[S], tokens outside it take
    none either, and count as dropped. `batch_priority` is False for token order, True or "max" for
    the largest weight first, "sum" for the largest sum of weights first. `scope`: see `mg.assign`.
    """
    chosen = expert if mask is None else mg.where(mask, expert, -1)
    placed = chosen if served is None else mg.where(served, chosen, -1)
    if capacity is None and not dropless:
        capacity = mg.capacity(k, capacity_factor, rounding=rounding, multiple_of=multiple_of)
    route = mg.assign(
        placed,
        weight,
        capacity=None if dropless else capacity,
        priority=_priority(weight, batch_priority),
        scope=scope,
    )
    return route, usage(route, chosen)


def _priority(weight, batch_priority):
    if batch_priority == "sum":
        return mg.sum(weight, over="K")
    return "gate" if batch_priority else None


def within_budget(weight, mask, budget):
    """bool[S]: the tokens with the largest gates, ceil(budget * S) of the group's S.

    The budget f32[S] is a run-time value, the same for all tokens of a group (the largest counts).
    Masked tokens come last. Tokens whose gates equal the last one's are served with it.
    """
    tokens = mg.size("S")
    gate = mg.stop_gradient(mg.cast(mg.max(weight, over="K"), "f32"))
    if mask is not None:
        gate = mg.where(mask, gate, -1.0)
    ranked, _ = mg.top_k(gate, tokens, over="S", dim="R")
    wanted = mg.max(mg.cast(budget, "f32"), over="S") * float(tokens)
    inside = mg.cast(mg.iota("R", tokens), "f32") < wanted
    least = mg.min(mg.where(inside, ranked, NEVER), over="R")
    served = gate >= least
    return served if mask is None else mask & served


def usage(route, expert):
    """`load` [E]: choices kept per expert. `asked`: all. `dropped`: their share without a slot.

    Choices outside 0..E-1 count in none of these; a group without any choice drops 0.
    """
    kept = mg.cast(mg.kept(route), "f32")
    valid = mg.cast((expert >= 0) & (expert < mg.size("E")), "f32")
    asked = mg.sum(valid, over="S K")
    load = mg.dot(kept, mg.one_hot(expert, "E"), over="K")
    return {
        "load": mg.sum(load, over="S"),
        "asked": asked,
        "dropped": (asked - mg.sum(kept, over="S K")) / mg.maximum(asked, 1.0),
    }


def gate_entropy(gates, mask=None, *, over="E", tokens="S"):
    """Mean over tokens of their gates' entropy, over log E: 0 is sure, 1 is all experts alike.

    Masked tokens do not count. A group of such tokens alone has 0.
    """
    gates = mg.stop_gradient(gates)
    # Times its logarithm a gate of 0 is 0, not NaN.
    own = mg.sum(gates * mg.log(mg.maximum(gates, 1e-30)), over=over)
    own = own * (-1.0 / math.log(max(mg.size(over), 2)))
    if mask is None:
        return mg.mean(own, over=tokens)
    real = mg.cast(mask, "f32")
    return mg.sum(own * real, over=tokens) / mg.maximum(mg.sum(real, over=tokens), 1.0)


def weighted_sum(weights, losses):
    """Sum of weight * loss over the losses with a weight above 0, and 0 where there is none.

    Both are dicts by name. A loss that has no weight cannot put a NaN into the sum.
    """
    terms = [weights[name] * loss for name, loss in losses.items() if weights[name] > 0]
    if not terms:
        return mg.stop_gradient(next(iter(losses.values()))) * 0.0
    return functools.reduce(operator.add, terms)


def renormalised(weight):
    """Weights of a token's choices divided by their sum."""
    return weight / mg.sum(weight, over="K")


def balance_loss(gates, expert):
    """E times the sum over experts of (share of choices) * (mean gate); 1 when balanced.

    Source: arXiv:2101.03961, equation 4, over all k choices.
    """
    share = mg.mean(mg.mean(mg.one_hot(expert, "E"), over="K"), over="S")
    return mg.sum(share * mg.mean(gates, over="S"), over="E") * float(mg.size("E"))


def z_loss(logits):
    """Mean over tokens of the squared logsumexp of the logits.

    Source: arXiv:2202.08906, equation 5.
    """
    return mg.mean(mg.square(mg.logsumexp(logits, over="E")), over="S")
