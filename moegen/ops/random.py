"""Random draws, keyed by the layer's key, the draw's number and the *global* group index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DtypeError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, add
from moegen.ir.types import FLOATS, GROUP, Key, Tensor, Type
from moegen.ops.named import JAX_DTYPES


class Draw(OpDef):
    """`normal(key, dims=("G", "S", "E"), dtype="f32", stream=0)`, and `uniform` likewise.

    `stream` numbers the draws of a program, so that two draws from one key differ. Each
    group has its own key: results do not change with the number of devices.
    """

    attributes = ("dims", "dtype", "stream", "placed")

    def __init__(self, name: str, sample: Callable[..., Any]):
        self.name = name
        self._sample = sample

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        if len(operands) != 1 or not isinstance(operands[0], Key):
            raise ShapeError("takes a key", fix="declare an argument `key: mg.Key`")
        if attrs["dtype"] not in FLOATS:
            raise DtypeError(f"draws real numbers, not {attrs['dtype']}", fix='dtype="f32"')
        if GROUP in attrs["dims"][1:]:
            raise ShapeError(f"dims {attrs['dims']} must start with {GROUP}")
        dims.shape(attrs["dims"])
        return (Tensor(attrs["dtype"], tuple(attrs["dims"])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality()

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        shape, dtype = env.sizes.shape(attrs["dims"]), JAX_DTYPES[attrs["dtype"]]
        key = jax.random.fold_in(arrays[0], attrs["stream"])
        if attrs["dims"][:1] != (GROUP,):
            return self._sample(key, shape, dtype)
        drawn = [
            self._sample(jax.random.fold_in(key, g), shape[1:], dtype) for g in range(shape[0])
        ]
        return jnp.stack(drawn) if drawn else jnp.zeros(shape, dtype)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (None,)


add(Draw("normal", jax.random.normal))
add(Draw("uniform", jax.random.uniform))
