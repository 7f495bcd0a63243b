"""Experts whose weights are stored in 8 bits: any declared one, its matrices as codes and scales.

A matrix w[D, F] becomes codes of i8 or f8e4m3 and a scale for each expert and column, w = codes x
scale. The author's function gets their product, so that nothing of it changes; the pass
`fuse_scales` then moves the scales behind the products. Codes are constants: no gradient reaches
them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from moegen.dsl.declare import Argument, Expert
from moegen.dsl.functions import dequantize
from moegen.dsl.specs import ArraySpec
from moegen.dsl.traced import Traced
from moegen.errors import DtypeError, TraceError, did_you_mean
from moegen.ir.types import NARROW
from moegen.ops.named import JAX_DTYPES

LARGEST = {"i8": 127.0, "f8e4m3": 448.0}
"""The largest code of each dtype."""
SCALE = "_scale"


@dataclass(frozen=True)
class Quantized(Expert):
    """An expert with matrices of codes; `{name}_scale` follows each in its parameters.

    Attributes:
      dtype: of the codes.
      names: of the matrices.
    """

    dtype: str = "i8"
    names: tuple[str, ...] = ()

    __hash__ = Expert.__hash__

    def quantize(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of this expert from those of the one it was made of.

        Args:
          params: arrays by name, the expert dim in front.

        Raises:
          TraceError: if one is missing.
        """
        made: dict[str, Any] = {}
        for arg in self.params:
            if arg.name.endswith(SCALE) and arg.name.removesuffix(SCALE) in self.names:
                continue
            if arg.name not in params:
                raise TraceError(
                    f"{self.name}: {arg.name} is not given{did_you_mean(arg.name, list(params))}",
                    fix="give the parameters of the expert that is quantised",
                    location=self.location,
                )
            if arg.name in self.names:
                made[arg.name], made[arg.name + SCALE] = quantize(params[arg.name], self.dtype)
            else:
                made[arg.name] = params[arg.name]
        return made


def quantize(weights: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of weights [E, D, ...]: largest magnitude over D, nearest code.

    Args:
      weights: of any real dtype.
      dtype: "i8" or "f8e4m3".

    Returns:
      Codes [E, D, ...] and scales f32[E, ...]; columns of zeros have the scale 1.
    """
    wide = jnp.asarray(weights).astype(jnp.float32)
    most = jnp.max(jnp.abs(wide), axis=1)
    scale = jnp.where(most > 0, most / LARGEST[dtype], 1.0)
    codes = wide / scale[:, None]
    codes = jnp.round(codes) if dtype == "i8" else codes
    return codes.astype(JAX_DTYPES[dtype]), scale


def quantized(expert: Expert, dtype: str = "i8") -> Quantized:
    """An expert as the one given, with every parameter of two dims or more in 8 bits.

    `layer.init` draws its codes at random; those of trained weights come from its `quantize`.

    Args:
      expert: declared with @moegen.expert, written with a matrix's summed dim first.
      dtype: "i8", or "f8e4m3" (arXiv:2209.05433), whose codes have 4 significant bits.

    Raises:
      DtypeError: for any other dtype.
    """
    if dtype not in NARROW:
        raise DtypeError(f'weights cannot be "{dtype}"', fix=f"use {' or '.join(NARROW)}")
    names = tuple(a.name for a in expert.params if _is_matrix(a))
    arguments: list[Argument] = []
    for arg in expert.arguments:
        if arg.name not in names:
            arguments.append(arg)
            continue
        assert isinstance(arg.spec, ArraySpec)
        codes = ArraySpec(dtype, arg.spec.dims, _random_codes)
        scale = ArraySpec("f32", arg.spec.dims[1:], _one_over_the_largest)
        arguments.append(Argument(arg.name, codes, arg.role, arg.optional))
        arguments.append(Argument(arg.name + SCALE, scale, arg.role, arg.optional))

    @functools.wraps(expert.fn)
    def widened(*args: Any, **settings: Any) -> Any:
        given, like = list(args), args[0]
        authors = [given.pop(0) if a.name not in names else _widened(given, like)
                   for a in expert.arguments]  # fmt: skip
        return expert.fn(*authors, **settings)

    return Quantized(widened, tuple(arguments), expert.settings, dtype, names)


def _widened(given: list[Any], like: Traced) -> Any:
    codes, scale = given.pop(0), given.pop(0)
    return None if codes is None else dequantize(codes, scale, like.dtype)


def _is_matrix(argument: Argument) -> bool:
    return isinstance(argument.spec, ArraySpec) and len(argument.spec.dims) > 1


def _random_codes(key: Any, shape: Any, dtype: Any) -> jax.Array:
    return jax.random.randint(key, shape, -127, 128).astype(dtype)


def _one_over_the_largest(key: Any, shape: Any, dtype: Any) -> jax.Array:
    return jnp.full(shape, 1 / 127, dtype)
