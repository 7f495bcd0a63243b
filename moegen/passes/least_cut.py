"""The cheapest set of values from which others can be computed: a minimum cut of their graph.

Source: maximum flow and minimum cut, L. R. Ford and D. R. Fulkerson (1956); shortest augmenting
paths, J. Edmonds and R. M. Karp (1972). Choosing what a backward keeps by a cut is in PyTorch's
min-cut partitioner.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence

Node = tuple[str, str]
"""A value's name, and which side of its own cost: "in" or "out"."""
_SOURCE, _SINK = ("", "source"), ("", "sink")


def least_cut(
    costs: Mapping[str, int], parents: Mapping[str, Sequence[str] | None], wanted: Sequence[str]
) -> set[str]:
    """Returns the values to keep so that every wanted one is kept or can be computed.

    Args:
      costs: what it costs to keep each value.
      parents: what each value is computed from; None: it has to be kept, or something that is
        computed from it. Values that are not listed cost nothing and are always there.
      wanted: the values that are needed in the end.

    Returns:
      The cheapest set; among equally cheap ones the one that leaves the least to compute.
    """
    return _cut(_graph(costs, parents, wanted))


def _graph(
    costs: Mapping[str, int], parents: Mapping[str, Sequence[str] | None], wanted: Sequence[str]
) -> dict[Node, dict[Node, int]]:
    """Arcs with capacities: a value's cost between its two sides, no limit between values."""
    unlimited = sum(costs.values()) + 1
    arcs: dict[Node, dict[Node, int]] = defaultdict(lambda: defaultdict(int))
    pending, seen = [v for v in wanted if v in parents], set()
    for value in pending:
        arcs[value, "out"][_SINK] = unlimited
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        arcs[value, "in"][value, "out"] = costs[value]
        known = parents[value]
        if known is None:
            arcs[_SOURCE][value, "in"] = unlimited
            continue
        for parent in known:
            if parent in parents:
                arcs[parent, "out"][value, "in"] = unlimited
                pending.append(parent)
    return arcs


def _cut(arcs: dict[Node, dict[Node, int]]) -> set[str]:
    """Fills the graph with flow; the cut is the full arcs nearest to the sink."""
    while path := _augmenting_path(arcs):
        room = min(arcs[a][b] for a, b in path)
        for a, b in path:
            arcs[a][b] -= room
            arcs[b][a] += room
    near = _reaching_sink(arcs)
    return {name for name, side in near if side == "out" and (name, "in") not in near}


def _augmenting_path(arcs: dict[Node, dict[Node, int]]) -> list[tuple[Node, Node]]:
    """The shortest path from source to sink with room on every arc; empty if there is none."""
    came: dict[Node, Node] = {_SOURCE: _SOURCE}
    queue = deque([_SOURCE])
    while queue and _SINK not in came:
        node = queue.popleft()
        for other, room in list(arcs[node].items()):
            if room > 0 and other not in came:
                came[other] = node
                queue.append(other)
    if _SINK not in came:
        return []
    path, node = [], _SINK
    while node != _SOURCE:
        path.append((came[node], node))
        node = came[node]
    return path


def _reaching_sink(arcs: dict[Node, dict[Node, int]]) -> set[Node]:
    into: dict[Node, list[Node]] = defaultdict(list)
    for a, others in arcs.items():
        for b, room in others.items():
            if room > 0:
                into[b].append(a)
    found, queue = {_SINK}, deque([_SINK])
    while queue:
        for other in into[queue.popleft()]:
            if other not in found:
                found.add(other)
                queue.append(other)
    return found
