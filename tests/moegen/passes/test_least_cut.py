"""The least cut against every possible one."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from moegen.passes.least_cut import least_cut

NAMES = "abcdef"


def computable(kept, parents, value):
    """Whether a value is kept or follows from what is."""
    if value in kept or value not in parents:
        return True
    known = parents[value]
    return known is not None and all(computable(kept, parents, p) for p in known)


@st.composite
def graphs(draw):
    """Values in order, each computed from earlier ones or not at all."""
    parents = {}
    for i, name in enumerate(NAMES):
        known = draw(st.none() | st.lists(st.sampled_from(["input", *NAMES[:i]]), max_size=3))
        parents[name] = known
    costs = {name: draw(st.integers(1, 5)) for name in NAMES}
    return costs, parents, draw(st.lists(st.sampled_from(NAMES), max_size=3))


@given(graphs())
def test_no_set_is_cheaper(graph):
    costs, parents, wanted = graph
    found = least_cut(costs, parents, wanted)
    assert all(computable(found, parents, w) for w in wanted)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(NAMES, n) for n in range(len(NAMES) + 1)
    )
    enough = (s for s in subsets if all(computable(s, parents, w) for w in wanted))
    assert sum(costs[v] for v in found) == min(sum(costs[v] for v in s) for s in enough)


def test_among_equals_the_one_that_leaves_the_least_to_compute():
    chain = {"a": None, "b": ("a",), "c": ("b",)}
    assert least_cut({"a": 4, "b": 4, "c": 4}, chain, ["c"]) == {"c"}
    assert least_cut({"a": 4, "b": 4, "c": 4}, chain, ["b", "c"]) == {"b"}
    assert least_cut({"a": 3, "b": 4, "c": 4}, chain, ["c"]) == {"a"}


def test_inputs_are_always_there():
    assert least_cut({"a": 4}, {"a": ("x", "y")}, ["a", "x"]) == set()
