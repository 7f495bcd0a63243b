"""How a random router chooses: from scores in its pool to a route."""

from __future__ import annotations

import math
from typing import Any

import moegen as mg
from tests.moegen.random.plans import Routing
from tests.moegen.random.pool import CLEAR, Entry, Pool

EACH = ("G", "S", "E")


def choose(pool: Pool, routing: Routing) -> Any:
    """Returns the route; weights and choices join the pool."""
    if routing.kind == "soft":
        return _soft(pool, routing)
    if routing.kind == "items":
        return _items(pool, routing)
    expert, weight = _choices(pool, routing)
    weight = _weighted(pool, routing, expert, weight)
    chosen = _masked(pool, routing, expert)
    pool.add(chosen, -1, pool.sizes["E"])
    pool.entries.append(weight)
    route = mg.assign(
        chosen,
        weight.value,
        capacity=_capacity(pool, routing),
        priority=_priority(pool, routing),
        distinct=routing.kind != "repeated",
    )
    pool.add(mg.kept(route))
    return route


def _scores(pool: Pool, routing: Routing) -> Entry:
    """Scores [S, E] after the gate; each router starts with logits, so there always are some."""
    picked = pool.pick(routing.scores, lambda e: e.is_float and e.dims == EACH)
    assert picked is not None
    if routing.gate == "raw":
        return picked
    if routing.gate == "sigmoid":
        low, high = (1 / (1 + math.exp(-v)) for v in (picked.low, picked.high))
        return pool.add(mg.sigmoid(picked.value), low, high)
    return pool.add(mg.softmax(picked.value, over="E"), 0.0, 1.0)


def _choices(pool: Pool, routing: Routing) -> tuple[Any, Entry]:
    """Choices i32[S, K] and their weights."""
    if routing.kind == "hash":
        return _hashed(pool, routing.k)
    if routing.kind == "nulls":
        return _with_nulls(pool, routing)
    scores = _scores(pool, routing)
    pool.sizes["K"] = 1 if routing.kind == "argmax" else routing.k
    if routing.kind == "argmax":
        expert = mg.argmax(scores.value, over="E") + mg.iota("K", 1)
        return expert, Entry(mg.take(scores.value, expert, over="E"), scores.low, scores.high)
    if routing.kind == "groups":
        return _limited(scores, routing.k)
    best, expert = mg.top_k(scores.value, routing.k, over="E")
    if routing.kind == "repeated":  # every choice names the first expert, or the first two in turn
        expert = mg.where(mg.iota("K") > 0, mg.max(expert, over="K"), expert)
    return expert, Entry(best, scores.low, scores.high)


def _hashed(pool: Pool, k: int) -> tuple[Any, Entry]:
    ids = next(e.value for e in pool.entries if e.is_int and e.dims == ("G", "S"))
    pool.sizes["K"] = k
    expert = (ids * 7 + mg.iota("K", k)) % mg.size("E")
    return expert, Entry(mg.cast(expert >= 0, "f32") / float(k), 1.0 / k, 1.0 / k)


def _with_nulls(pool: Pool, routing: Routing) -> tuple[Any, Entry]:
    """Scores of E experts and Z null experts, which take no place."""
    x, z = pool.entries[0].value, next(e.value for e in pool.entries if e.dims == ("D", "Z"))
    scores = _scores(pool, routing)
    pool.sizes |= {"A": mg.size("E") + mg.size("Z"), "K": routing.k}
    both = mg.concat(scores.value, mg.dot(x, z, over="D"), ("E", "Z"), "A")
    best, choice = mg.top_k(both, routing.k, over="A")
    edge = 1.0 * mg.size("D")
    return (
        mg.where(choice < mg.size("E"), choice, -1),
        Entry(best, min(scores.low, -edge), max(scores.high, edge)),
    )


def _limited(scores: Entry, k: int) -> tuple[Any, Entry]:
    """Only experts of the better half, if E is even, else of everything."""
    groups = 2 if mg.size("E") % 2 == 0 and k <= mg.size("E") // 2 else 1
    parts = mg.split(scores.value, "E", P_groups=groups, Q_each=mg.size("E") // groups)
    _, group = mg.top_k(mg.max(mg.stop_gradient(parts), over="Q_each"), 1, over="P_groups", dim="J")
    allowed = mg.sum(mg.one_hot(group, "P_groups"), over="J") > 0.5
    limited = mg.merge(mg.where(allowed, parts, -50.0), "P_groups Q_each", "E")
    best, expert = mg.top_k(limited, k, over="E")
    return expert, Entry(best, scores.low, scores.high)


def _weighted(pool: Pool, routing: Routing, expert: Any, weight: Entry) -> Entry:
    """The weights after what the routing does to them."""
    for what in routing.weight:
        value, low, high = weight.value, weight.low, weight.high
        if what == "normalise" and low >= 0.0:
            weight = Entry(value / (mg.sum(value, over="K") + 0.25), 0.0, 1.0)
        elif what == "scale":
            weight = Entry(value * 1.5, min(low * 1.5, low), max(high * 1.5, high))
        elif what == "take":
            other = pool.pick(routing.scores + 1, lambda e: e.is_float and e.dims == EACH)
            taken = mg.take(other.value, expert, over="E")
            weight = Entry(taken, min(other.low, 0.0), max(other.high, 0.0))
        elif what == "per_token":
            per = pool.pick(routing.scores, lambda e: e.is_float and e.dims == ("G", "S"))
            if per and max(abs(low), abs(high), abs(per.low), abs(per.high)) < 6:
                weight = Entry(value * per.value, -36.0, 36.0)
        elif what == "ones":
            weight = Entry(mg.cast(expert >= 0, "f32"), 0.0, 1.0)
        elif what == "stop":
            weight = Entry(mg.stop_gradient(value), low, high)
    return weight


def _masked(pool: Pool, routing: Routing, expert: Any) -> Any:
    picked = None
    if routing.mask == "input":
        picked = next(e for e in pool.entries if e.is_bool and e.dims == ("G", "S"))
    elif routing.mask == "pick":
        allowed = (("G", "S"), ("G", "S", "K"), ("K",))
        picked = pool.pick(routing.k, lambda e: e.is_bool and e.dims in allowed)
    return expert if picked is None else mg.where(picked.value, expert, -1)


def _capacity(pool: Pool, routing: Routing) -> int | None:
    if not isinstance(routing.capacity, tuple):
        return routing.capacity
    _, factor, multiple = routing.capacity
    return mg.capacity(pool.sizes["K"], factor, multiple_of=multiple)


def _priority(pool: Pool, routing: Routing) -> Any:
    if not isinstance(routing.priority, int):
        return routing.priority
    picked = pool.pick(routing.priority, lambda e: not e.is_bool and e.dims == ("G", "S"))
    return picked.value if picked else None


def _items(pool: Pool, routing: Routing) -> Any:
    """Each expert takes its best tokens."""
    scores = _scores(pool, routing)
    capacity = min(_capacity(pool, routing) or 1, mg.size("S")) if not isinstance(
        routing.capacity, tuple
    ) else min(2, mg.size("S"))  # fmt: skip
    pool.sizes["C"] = capacity
    best, token = mg.top_k(scores.value, capacity, over="S", dim="C")
    weight = Entry(best, scores.low, scores.high)
    if "scale" in routing.weight:
        weight = Entry(best * 0.5, min(scores.low, 0), max(scores.high, 0))
    if "take" in routing.weight:
        weight = Entry(mg.take(scores.value, token, over="S"), scores.low, scores.high)
    if routing.mask == "pick":
        weight = Entry(mg.where(weight.value > CLEAR, weight.value, 0.0), scores.low, scores.high)
    pool.add(token, 0, mg.size("S") - 1)
    pool.entries.append(weight)
    route = mg.assign_items(token, weight.value)
    pool.add(mg.kept(route))
    return route


def _soft(pool: Pool, routing: Routing) -> Any:
    """Softmax over the tokens into slots, and over the slots back."""
    x, mu = pool.entries[0].value, next(e.value for e in pool.entries if "C" in e.dims)
    logits = mg.dot(x, mu, over="D")
    if routing.mask == "input":
        mask = next(e.value for e in pool.entries if e.is_bool and e.dims == ("G", "S"))
        logits = mg.where(mask, logits, -30.0)
    into, out = mg.softmax(logits, over="S"), mg.softmax(logits, over=("E", "C"))
    if "scale" in routing.weight:
        out = out * 1.5
    if "stop" in routing.weight:
        into = mg.stop_gradient(into)
    pool.add(into)
    pool.add(out, 0.0, 1.5)
    if "ones" in routing.weight:  # one array for both ways, used by two routes
        return mg.soft_route(out, out)
    return mg.soft_route(into, out)
