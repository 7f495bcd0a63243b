"""Multiply-adds of a program: the products and convolutions that it really executes."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-adds of all matrix products and convolutions in one call, padding included.

    Elementwise work is not counted. Nothing is run: shapes are enough as arguments.

    Raises:
      ValueError: for a product within a loop, whose number of turns is not looked up.
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner = sum(_of(getattr(j, "jaxpr", j)) for j in _inner(equation.params))
        if inner and name in ("scan", "while", "cond"):
            raise ValueError(f"products within {name} are not counted; fix: another format")
        total += inner
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    """The programs that an operation calls."""
    values = (v if isinstance(v, (tuple, list)) else (v,) for v in params.values())
    return [i for items in values for i in items if hasattr(getattr(i, "jaxpr", i), "eqns")]


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[outputs]
    return math.prod(equation.outvars[0].aval.shape) * per_output
