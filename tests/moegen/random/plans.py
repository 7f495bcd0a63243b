"""Random layers as data: what hypothesis draws, and what a failure shrinks to.

A plan says everything about a layer and its arrays; `layers.py` turns it into functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tests.moegen.random.instructions import INSTRUCTIONS

SIZES = (
    {"G": 2, "S": 4, "E": 4, "D": 2, "F": 2, "Z": 2},
    {"G": 2, "S": 4, "E": 2, "D": 2, "F": 4, "Z": 2},
    {"G": 2, "S": 5, "E": 3, "D": 4, "F": 2, "Z": 1},
    {"G": 1, "S": 1, "E": 1, "D": 2, "F": 3, "Z": 1},
)
"""Few, because JAX compiles every operation once per shape."""
ALIKE = (0, 0, 0, 0, 0, 1)
"""What tests of few programs draw from: their shapes are mostly of 2s and 4s."""
ALL = (0, 1, 2, 2, 3)
KINDS = ("top_k", "argmax", "groups", "nulls", "hash", "repeated", "items", "soft")
"""How tokens meet experts; all but the last two are token choice."""
NAMES = ("auxiliary_loss", "grad", "acc", "jnp", "x", "inf", "λ")
"""Of outputs; some are words of the text format or of the emitted code."""

Step = tuple[str, int, int]
"""An instruction and its two picks."""


@dataclass(frozen=True)
class Routing:
    """How the router chooses.

    Attributes:
      kind: one of KINDS.
      k: choices per token.
      scores: picks the scores [S, E] from the pool.
      gate: what is done to them first.
      weight: what is done to the weights, in order.
      mask: "none", "input" or "pick": which choices take no place.
      capacity: slots per expert and group; ("factor", f, multiple_of); None: dropless.
      priority: None, "gate", or picks a value per token from the pool.
    """

    kind: str = "top_k"
    k: int = 1
    scores: int = 0
    gate: str = "softmax"
    weight: tuple[str, ...] = ()
    mask: str = "none"
    capacity: int | tuple[str, float, int | None] | None = None
    priority: str | int | None = None


@dataclass(frozen=True)
class Plan:
    """A layer.

    Attributes:
      sizes: index into SIZES.
      seed: of the arrays.
      key: whether a random key is given.
      before, after: the router's instructions around the routing.
      outputs: a name, a pick, and whether the value is averaged to one number per group.
      body: what the expert's instructions start from: "rows" x, a "dense" layer, or a "gated" one.
      expert: the expert's instructions.
      close: whether a dense layer from F to D ends the expert, where there is an F.
      rows: picks what the expert returns.
      block, target, save: of the schedule.
    """

    sizes: int = 0
    seed: int = 0
    key: bool = False
    before: tuple[Step, ...] = ()
    routing: Routing = Routing()
    after: tuple[Step, ...] = ()
    outputs: tuple[tuple[str, int, bool], ...] = ()
    body: str = "rows"
    expert: tuple[Step, ...] = ()
    close: bool = False
    rows: int = 0
    block: int = 1
    target: str = "h100"
    save: str = "all"


_ONLY_IN_EXPERTS = ("mix_rows", "glu", "norm")
_OFTEN = ("dot", "number", "compare", "where", "softmax", "mul", "add")
_ROUTER = (*_OFTEN, *(n for n in INSTRUCTIONS if n not in _ONLY_IN_EXPERTS))
_EXPERT = (*_OFTEN, "glu", "glu", "norm", *(n for n in INSTRUCTIONS if n not in _OFTEN))
_PICK = st.sampled_from([0, 1, 0, 2, 0, 3, 1, 5, 8])
"""0 is the newest value, so that results are built on."""


def _steps(names: tuple[str, ...], most: int) -> st.SearchStrategy[tuple[Step, ...]]:
    return st.lists(st.tuples(st.sampled_from(names), _PICK, _PICK), max_size=most).map(tuple)


def _capacities(size: dict[str, int]) -> st.SearchStrategy:
    return st.sampled_from([None, 2, ("factor", 1.0, 2), ("factor", 0.5, 4)])


def routings(size: dict[str, int], kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Routing]:
    """Routings that fit a layer of these sizes."""
    return st.builds(
        Routing,
        kind=st.sampled_from(kinds),
        k=st.integers(1, min(2, size["E"])),
        scores=st.integers(0, 2),
        gate=st.sampled_from(["softmax", "sigmoid", "raw"]),
        weight=st.lists(
            st.sampled_from(["normalise", "scale", "take", "per_token", "ones", "stop"]), max_size=2
        ).map(tuple),
        mask=st.sampled_from(["none", "none", "input", "pick"]),
        capacity=_capacities(size),
        priority=st.sampled_from([None, None, "gate", 0, 1, 2]),
    )


@st.composite
def plans(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, sizes: tuple[int, ...] = ALIKE) -> Plan:
    """Any plan with routings of these kinds, in these sizes of SIZES."""
    size = draw(st.sampled_from(sizes))
    names = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
    return Plan(
        sizes=size,
        seed=draw(st.integers(0, 999)),
        key=draw(st.booleans()),
        before=draw(_steps(_ROUTER, 5)),
        routing=draw(routings(SIZES[size], kinds)),
        after=draw(_steps(_ROUTER, 2)),
        outputs=tuple((n, draw(st.integers(0, 5)), draw(st.booleans())) for n in names),
        body=draw(st.sampled_from(["rows", "dense", "dense", "gated"])),
        expert=draw(_steps(_EXPERT, 5)),
        close=draw(st.booleans()),
        rows=draw(st.sampled_from([0, 0, 0, 1, 2])),
        block=draw(st.sampled_from([1, 1, 1, 1, 1, 2])),
        target=draw(st.sampled_from(["h100", "h100", "cpu"])),
        save=draw(st.sampled_from(["all", "least"])),
    )
