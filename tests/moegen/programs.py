"""Small layers whose programs several tests look at."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moegen as mg
from moegen.experts import mlp
from moegen.ir.interpret import interpret
from moegen.ir.program import Program
from moegen.ir.types import Key, Tensor
from moegen.ops.named import JAX_DTYPES
from moegen.routers import noisy_top_k
from moegen.runtime.stages import Lowered, Traced

X = jax.ShapeDtypeStruct((2, 5, 3), jnp.float32)


def traced(router: Any = None, expert: Any = mlp, **schedule: Any) -> Traced:
    """Noisy top-k and an MLP unless others are given: G=2, S=5, D=3, E=3, F=2."""
    if router is None:
        router = noisy_top_k.bind(
            k=2, batch_priority=True, importance_loss_weight=0.1, load_loss_weight=0.1
        )
    layer = mg.compile(router, expert, mg.Schedule(**{"block": 2, "target": "cpu"} | schedule))
    takes_key = any(a.role == "key" for a in router.arguments)
    return layer.trace(X, key=jax.random.key(0) if takes_key else None, experts=3, hidden=2)


@functools.cache
def lowered(format: str, save: str = "all") -> Lowered:
    """The layer of `traced()` after each pass."""
    return traced(format=format, save=save).lower()


def random_inputs(program: Program, seed: int = 0) -> list[Any]:
    """One array or key per argument: normal floats, zeros for integers, True for bools."""
    rng = np.random.default_rng(seed)
    made: list[Any] = []
    for value in program.arguments:
        if isinstance(value.type, Key):
            made.append(jax.random.key(seed))
            continue
        assert isinstance(value.type, Tensor)
        shape = tuple(program.sizes[d] for d in value.type.dims)
        dtype = JAX_DTYPES[value.type.dtype]
        if value.type.is_float:
            made.append(jnp.asarray(rng.normal(size=shape), dtype))
        else:
            made.append(jnp.ones(shape, dtype) if dtype == jnp.bool_ else jnp.zeros(shape, dtype))
    return made


def assert_same_meaning(before: Program, after: Program) -> None:
    """Two programs of the same arguments give the same on random ones, but for rounding."""
    inputs = random_inputs(before)
    want, got = (jax.tree.leaves(interpret(p, *inputs)) for p in (before, after))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(a).max()))
