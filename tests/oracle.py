"""The MoE layer in float64 loops: an oracle that shares no code with what it checks.

Nothing here is fast. It is written to be compared with the paper by eye (arXiv:2106.05974,
sections 2 and 3, appendix A). Sizes: G groups, S tokens a group, E experts, K choices, C slots,
D width, F hidden.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Vector = np.ndarray


def capacity(tokens: int, experts: int, factor: float, rounding: str, multiple_of: int) -> int:
    """Slots of each expert in a group that makes `tokens` choices."""
    exact = tokens * factor / experts
    slots = math.ceil(exact) if rounding == "ceil" else round(exact)
    if slots < 1:
        raise ValueError("no slot")
    while multiple_of and slots % multiple_of:
        slots += 1
    return slots


def softmax(logits: Vector) -> Vector:
    powers = [math.exp(v - max(logits)) for v in logits]
    return np.array([p / math.fsum(powers) for p in powers])


def top_k(values: Vector, k: int) -> list[int]:
    """Indices of the k largest values, largest first; among equals the lowest index first."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def squared_variation(values: Sequence[float]) -> float:
    """(standard deviation / mean)^2, of the population."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    return variance / mean**2


# ---- who gets which slot


def serving_order(first_gate: Sequence[float], batch_priority: bool) -> list[int]:
    """Tokens in the order they are served: as they come, or the largest gate first."""
    tokens = list(range(len(first_gate)))
    return sorted(tokens, key=lambda s: -first_gate[s]) if batch_priority else tokens


def queue_places(
    chosen: list[list[int]], order: list[int], experts: int, mask: Sequence[bool]
) -> list[list[int]]:
    """For each token and choice its place in the expert's queue, -1 for padding.

    All first choices come before all second ones. Queues know no capacity.
    """
    choices = len(chosen[0])
    length = [0] * experts
    places = [[-1] * choices for _ in chosen]
    for k in range(choices):
        for s in order:
            if mask[s]:
                expert = chosen[s][k]
                places[s][k] = length[expert]
                length[expert] += 1
    return places


# ---- losses of one group


def importance_loss(logits: Vector) -> float:
    gates = [softmax(row) for row in logits]
    return squared_variation([math.fsum(g[e] for g in gates) for e in range(logits.shape[1])])


def load_loss(logits: Vector, noisy: Vector, sigma: float, k: int) -> float:
    """How unevenly experts would be chosen if each logit's noise were drawn again."""
    tokens, experts = logits.shape
    load = [0.0] * experts
    for clean, row in zip(logits, noisy, strict=True):
        threshold = row[top_k(row, k)[-1]]
        for e in range(experts):
            load[e] += (1.0 - normal_cdf((threshold - clean[e]) / sigma)) / tokens
    return squared_variation(load)


def gshard_loss(gates: Vector) -> float:
    tokens, experts = gates.shape
    first = [top_k(row, 1)[0] for row in gates]
    total = 0.0
    for e in range(experts):
        share = sum(f == e for f in first) / tokens
        total += share * math.fsum(gates[:, e]) / tokens
    return experts**2 * total / experts


# ---- the expert


def gelu(x: float) -> float:
    return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def mlp(row: Vector, w1: Vector, b1: Vector, w2: Vector, b2: Vector) -> Vector:
    hidden = np.array([gelu(v) for v in row @ w1 + b1])
    return hidden @ w2 + b2


# ---- the layer


@dataclass(frozen=True)
class Settings:
    """The router's settings; `capacity` None means dropless."""

    k: int
    capacity: int | None
    noise_std: float = 1.0
    batch_priority: bool = False
    importance_loss_weight: float = 0.0
    load_loss_weight: float = 0.0
    gshard_loss_weight: float = 0.0


@dataclass
class Group:
    """What one group's routing comes to.

    Attributes:
      gates: [S, E], of the noisy logits.
      chosen: the experts of each token, best first.
      places: each choice's place in its expert's queue, -1 for padding.
      y: [S, D].
      values: losses and counts by name.
    """

    gates: Vector
    chosen: list[list[int]]
    places: list[list[int]]
    y: Vector
    values: dict[str, float | Vector] = field(default_factory=dict)


def moe_layer(
    settings: Settings,
    router: Vector,
    experts: Sequence[Sequence[Vector]],
    x: Vector,
    noise: Vector | None = None,
    mask: Vector | None = None,
) -> dict[str, Vector]:
    """The layer on x[G, S, D] with router weights [D, E] and one tuple of MLP weights an expert.

    `noise` is a standard normal draw [G, S, E], `mask` [G, S] is False for padding. Returns y and
    the router's outputs, each stacked over groups.
    """
    mask = np.ones(x.shape[:2], bool) if mask is None else mask
    groups = [
        run_group(settings, router, experts, x[g], None if noise is None else noise[g], mask[g])
        for g in range(len(x))
    ]
    names = groups[0].values
    return {
        "y": np.array([g.y for g in groups]),
        "gates": np.array([g.gates for g in groups]),
        **{n: np.array([g.values[n] for g in groups]) for n in names},
    }


def run_group(
    settings: Settings,
    router: Vector,
    experts: Sequence[Sequence[Vector]],
    x: Vector,
    noise: Vector | None,
    mask: Vector,
) -> Group:
    sigma = settings.noise_std / len(experts)
    logits = np.array([row @ router for row in x])
    noisy = logits if noise is None else logits + sigma * noise
    gates = np.array([softmax(row) for row in noisy])
    chosen = [top_k(row, settings.k) for row in gates]
    first_gate = [gates[s][chosen[s][0]] for s in range(len(x))]
    order = serving_order(first_gate, settings.batch_priority)
    places = queue_places(chosen, order, len(experts), mask)
    group = Group(gates, chosen, places, np.zeros_like(x))
    group.y = combine(settings, group, experts, x)
    group.values = losses(settings, logits, noisy, gates, sigma) | usage(settings, group, mask)
    return group


def has_slot(settings: Settings, place: int) -> bool:
    return place >= 0 and (settings.capacity is None or place < settings.capacity)


def combine(
    settings: Settings, group: Group, experts: Sequence[Sequence[Vector]], x: Vector
) -> Vector:
    """Each token's sum of its experts' outputs times their gates, where it got a slot."""
    y = np.zeros((len(x), experts[0][-1].shape[-1]))
    for s, row in enumerate(x):
        for e, place in zip(group.chosen[s], group.places[s], strict=True):
            if has_slot(settings, place):
                y[s] += group.gates[s][e] * mlp(row, *experts[e])
    return y


def losses(
    settings: Settings, logits: Vector, noisy: Vector, gates: Vector, sigma: float
) -> dict[str, float]:
    """The three losses and their weighted sum; without noise there is no load loss."""
    found = {"importance_loss": importance_loss(logits), "gshard_loss": gshard_loss(gates)}
    total = settings.importance_loss_weight * found["importance_loss"]
    total += settings.gshard_loss_weight * found["gshard_loss"]
    if noisy is not logits and sigma > 0:
        found["load_loss"] = load_loss(logits, noisy, sigma, settings.k)
        total += settings.load_loss_weight * found["load_loss"]
    return {**found, "auxiliary_loss": total}


def usage(settings: Settings, group: Group, mask: Vector) -> dict[str, float | Vector]:
    """Choices kept per expert, all choices, the share without a slot, how unsure the gates are.

    Padding chooses none, and its gates do not count.
    """
    load = np.zeros(group.gates.shape[1])
    for chosen, places in zip(group.chosen, group.places, strict=True):
        for e, place in zip(chosen, places, strict=True):
            load[e] += has_slot(settings, place)
    asked = sum(bool(m) for m in mask) * settings.k
    unsure = [entropy(row) for row, real in zip(group.gates, mask, strict=True) if real]
    return {
        "load": load,
        "asked": asked,
        "dropped": 1.0 - load.sum() / asked if asked else 0.0,
        "gate_entropy": sum(unsure) / len(unsure) if unsure else 0.0,
    }


def entropy(gates: Vector) -> float:
    """Of one token's gates, in units of that of an even choice; of a single expert 0."""
    total = -sum(float(g) * math.log(g) for g in gates if g > 0)
    return total / math.log(len(gates)) if len(gates) > 1 else 0.0
