"""Arrays of codes that a layer is given: a gradient with respect to them is an error."""

from __future__ import annotations

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from moegen.errors import DtypeError
from moegen.ops.named import JAX_DTYPES

CODES = JAX_DTYPES["f8e4m3"]
"""The dtype of codes that JAX takes for numbers with a gradient; integers it refuses itself."""


def constant(name: str, array: Any) -> Any:
    """The array; where it is one of codes, differentiating by it raises.

    The gradient would be 0: products read codes as constants, and rounding has no other.

    Args:
      name: of the parameter, for the error.
      array: of any dtype; a pytree leaf.
    """
    if array.dtype != CODES:
        return array

    @jax.custom_jvp
    def codes(x: Any) -> Any:
        return x

    def refuse(primals: Any, tangents: Any) -> Any:
        if not isinstance(tangents[0], SymbolicZero):
            raise DtypeError(
                f"{name} is differentiated by, and holds codes of 8 bits, which are constants",
                fix="take the gradient by the other parameters only, or give the layer "
                f"jax.lax.stop_gradient({name}); train in bf16 or f32, and quantize afterwards",
                op=f"dequantize({name}, {name}_scale)",
            )
        return primals[0], tangents[0]

    codes.defjvp(refuse, symbolic_zeros=True)
    return codes(array)
