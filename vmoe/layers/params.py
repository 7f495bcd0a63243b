"""Parameter trees: their type, keys by name, and how kernels are drawn."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, overload

import jax

Params = dict[str, Any]
"""A nested dict of arrays with the names of the released checkpoints' tree."""

Initializer = Callable[[jax.Array, Sequence[int]], jax.Array]
"""fn(key, shape) -> f32 array, as in jax.nn.initializers."""

xavier_uniform: Initializer = jax.nn.initializers.xavier_uniform()
lecun_normal: Initializer = jax.nn.initializers.lecun_normal()
zeros: Initializer = jax.nn.initializers.zeros


@overload
def named_key(key: jax.Array, name: str) -> jax.Array: ...


@overload
def named_key(key: None, name: str) -> None: ...


def named_key(key: jax.Array | None, name: str) -> jax.Array | None:
    """Derives the key of a child from its name; None stays None.

    A weight then depends on its own path only: a dense and a sparse model, or two depths,
    drawn from one key share every weight that they have in common.
    """
    return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


def draw_kernel(
    initializer: Initializer, key: jax.Array, inputs: Sequence[int], outputs: Sequence[int]
) -> jax.Array:
    """Draws a kernel f32[*inputs, *outputs] as the matrix it is, so that its fans are right.

    Fan-in is prod(inputs), fan-out prod(outputs): heads and patch pixels count as features.
    """
    matrix = initializer(key, (math.prod(inputs), math.prod(outputs)))
    return matrix.reshape(*inputs, *outputs)
