"""Small layers with their arrays, drawn at random or named: what the oracle and the formats run on.

Tokens and router weights are multiples of 1/8, and the noise is scaled by 1/2, so that logits are
exact in float32: equal logits are equal everywhere, and no decision hangs on a rounding.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import moegen as mg
from moegen.dsl.trace import Slot
from moegen.experts import mlp
from moegen.routers import noisy_top_k

FORMATS = ("onehot", "slots", "sorted")
SHAPES = ((1, 5, 1, 1), (2, 6, 3, 2), (2, 4, 4, 4))
"""G, S, E, K. Few, because JAX compiles every operation once per shape."""
WIDTH, HIDDEN = 4, 3
WEIGHTS = {"importance_loss_weight": 0.5, "load_loss_weight": 0.25, "gshard_loss_weight": 0.125}


@dataclass(frozen=True)
class Case:
    """One call of a layer: `capacity` None is dropless, `noise` and `mask` may be absent."""

    k: int
    capacity: int | None
    batch_priority: bool
    x: np.ndarray
    w: np.ndarray
    expert: dict[str, np.ndarray]
    noise: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def num_experts(self) -> int:
        return self.w.shape[1]

    @property
    def noise_std(self) -> float:
        """So that the noise is multiplied by 1/2, whatever E is."""
        return self.num_experts / 2

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        given = {"noise": self.noise, "mask": self.mask}
        return {n: v for n, v in given.items() if v is not None}

    @property
    def params(self) -> dict[str, Any]:
        return {"router": {"w": self.w}, "expert": self.expert}

    def layer(self, form: str, block: int = 1) -> mg.Layer:
        settings = (self.k, self.capacity, self.batch_priority, self.noise_std)
        return _layer(*settings, form, block)

    def run(self, form: str, block: int = 1) -> dict[str, Any]:
        """Outputs of the emitted code, run line by line: compiling each case takes too long."""
        inputs = {n: jnp.asarray(a) for n, a in self.inputs.items()}
        compiled = self.layer(form, block).lower(self.params, self.x, inputs=inputs).compile()
        values = compiled.function(*self.arrays(compiled.slots))
        return dict(zip(compiled.outputs, values, strict=True))

    def arrays(self, slots: tuple[Slot, ...]) -> list[jax.Array]:
        """The arrays of a program's inputs, in their order."""
        named = {"x": self.x, **self.inputs, **self.params["router"], **self.expert}
        return [jnp.asarray(named[slot.name]) for slot in slots]

    def __repr__(self) -> str:
        shape = "x".join(map(str, (*self.x.shape, self.num_experts)))
        extras = [f"k={self.k}", f"capacity={self.capacity}"]
        extras += ["bpr"] * self.batch_priority + list(self.inputs)
        return f"Case({shape}, {', '.join(extras)})"


@cache
def _layer(k, capacity, batch_priority, noise_std, form, block) -> mg.Layer:
    router = noisy_top_k.bind(
        k=k,
        capacity=capacity,
        dropless=capacity is None,
        batch_priority=batch_priority,
        noise_std=noise_std,
        **WEIGHTS,
    )
    return mg.compile(router, mlp, mg.Schedule(format=form, block=block))


def eighths(rng: np.random.Generator, most: int, *shape: int) -> np.ndarray:
    return (rng.integers(-most, most + 1, shape) / 8).astype(np.float32)


def make_case(
    shape: tuple[int, int, int, int],
    capacity: int | None,
    *,
    batch_priority: bool = False,
    noisy: bool = False,
    masked: bool = False,
    ties: bool = False,
    seed: int = 0,
) -> Case:
    """A case of that shape; with ties, tokens repeat and experts share router columns."""
    groups, tokens, experts, k = shape
    rng = np.random.default_rng(seed)
    same_token = rng.integers(0, 2, (groups, tokens)) if ties else None
    x, noise = eighths(rng, 8, groups, tokens, WIDTH), eighths(rng, 16, groups, tokens, experts)
    w = eighths(rng, 16, WIDTH, experts)
    if same_token is not None:
        x, noise = (np.take_along_axis(a, same_token[..., None], 1) for a in (x, noise))
        w = w[:, rng.integers(0, experts, experts)]
    return Case(
        k=k,
        capacity=capacity,
        batch_priority=batch_priority,
        x=x,
        w=w,
        expert=expert_weights(rng, experts),
        noise=noise if noisy else None,
        mask=rng.random((groups, tokens)) < 0.6 if masked else None,
    )


def expert_weights(rng: np.random.Generator, experts: int) -> dict[str, np.ndarray]:
    shapes = {"w1": (WIDTH, HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN, WIDTH), "b2": (WIDTH,)}
    return {n: rng.normal(size=(experts, *s)).astype(np.float32) for n, s in shapes.items()}


def priorities_are_clear(case: Case) -> bool:
    """Whether the order of service does not hang on how a softmax is rounded.

    Two tokens' largest gates are far apart, or come from the very same logits.
    """
    if not case.batch_priority:
        return True
    logits = case.x.astype(np.float64) @ case.w.astype(np.float64)
    logits = logits if case.noise is None else logits + case.noise / 2
    gates = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    for rows, first in zip(logits, gates, strict=True):
        for a in range(len(rows)):
            for b in range(a):
                if abs(first[a] - first[b]) < 1e-5 and not np.array_equal(rows[a], rows[b]):
                    return False
    return True


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case, with an order of service that is clear."""
    flags = {n: draw(st.booleans()) for n in ("batch_priority", "noisy", "masked", "ties")}
    return draw(
        st.builds(
            lambda shape, capacity, seed: make_case(shape, capacity, seed=seed, **flags),
            st.sampled_from(SHAPES),
            st.sampled_from((2, None)),
            st.integers(0, 2**16),
        ).filter(priorities_are_clear)
    )


def _one_favourite(shape, capacity, **flags) -> Case:
    """All tokens want expert 0 first and expert 1 next; the others stay empty for k <= 2."""
    case = make_case(shape, capacity, **flags)
    w = np.full_like(case.w, -0.5)
    w[:, 0], w[:, 1:2] = 0.5, 0.25
    return replace(case, x=np.abs(case.x) + np.float32(0.125), w=w)


ONE, SOME, ALL = SHAPES
CORNERS = {
    "one_expert": make_case(ONE, 2, noisy=True),
    "one_expert_dropless": make_case(ONE, None),
    "every_expert": make_case(ALL, 2, noisy=True),
    "every_expert_dropless": make_case(ALL, None, batch_priority=True),
    "all_tied": replace(make_case(SOME, 2, ties=True), w=np.zeros((WIDTH, 3), np.float32)),
    "all_tied_by_priority": make_case(SOME, 2, batch_priority=True, ties=True),
    "capacity_overflow_by_priority": _one_favourite(SOME, 2, batch_priority=True),
    "tokens_without_any_slot": _one_favourite(SOME, 2),
    "empty_experts_dropless": _one_favourite(SOME, None),
    "padding": make_case(SOME, 2, masked=True, batch_priority=True, seed=3),
    "padding_dropless": make_case(SOME, None, masked=True, noisy=True, seed=3),
    "padding_only": replace(make_case(SOME, 2), mask=np.zeros((2, 6), bool)),
}
"""Named corners; each is also an example that random ones may miss."""
