"""What an argument of a router or expert is: `mg.f32["S D"]`, `mg.floating["C D"]`, `mg.Key`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DimError
from moegen.ir.types import FLOATS

Initializer = Callable[[Any, Sequence[int], Any], Any]
"""fn(key, shape, dtype) -> array, as in jax.nn.initializers."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """A declared array: dtype (None: any real dtype), dim names, and how to initialise it."""

    dtype: str | None
    dims: tuple[str, ...]
    initializer: Initializer | None = None

    def init(self, initializer: Initializer) -> ArraySpec:
        """Returns the spec with an initialiser, such as jax.nn.initializers.normal(0.02)."""
        return replace(self, initializer=initializer)

    def accepts(self, dtype: str) -> bool:
        """Whether an array of this dtype fits the declaration."""
        return dtype in FLOATS if self.dtype is None else dtype == self.dtype

    def __str__(self) -> str:
        return f"{self.dtype or 'floating'}[{', '.join(self.dims)}]"


@dataclass(frozen=True, slots=True)
class KeySpec:
    """A declared random key."""


class Dtype:
    """A dtype to be indexed with dim names: `f32["S D"]`; `f32[""]` is a scalar."""

    def __init__(self, name: str | None):
        self.name = name

    def __getitem__(self, dims: str) -> ArraySpec:
        names = tuple(dims.replace(",", " ").split())
        bad = [d for d in names if not d.isidentifier()]
        if bad:
            raise DimError(
                f'"{bad[0]}" is not a dim name', fix='write names separated by spaces: f32["S D"]'
            )
        return ArraySpec(self.name, names)

    def __repr__(self) -> str:
        return f"moegen.{self.name or 'floating'}"


floating = Dtype(None)
"""Any real dtype; the array that is given decides."""
f32, bf16, f16 = Dtype("f32"), Dtype("bf16"), Dtype("f16")
i32, i8, bool_ = Dtype("i32"), Dtype("i8"), Dtype("bool")
f8e4m3 = Dtype("f8e4m3")
Key = KeySpec()


def initialize(spec: ArraySpec, key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Initialises one weight without the expert dim.

    The default is LeCun normal for two dims and more, zeros for vectors and scalars.
    """
    if spec.initializer is not None:
        return spec.initializer(key, shape, dtype)
    if len(shape) < 2:
        return jnp.zeros(shape, dtype)
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)
