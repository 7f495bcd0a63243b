"""Multiply-adds of a program, counted in what JAX traced: no formula that could forget one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax


def static_macs(jaxpr: Any) -> int:
    """Multiply-adds of all products that are run a known number of times, loops unrolled."""
    return sum(times * _macs(eqn) for eqn, times in _products(jaxpr, 1))


def has_data_dependent_products(jaxpr: Any) -> bool:
    """Whether there are products in loops that run as often as the data says.

    Dropless layers on CPU have them: the rows of an expert are as many as chose it.
    """
    return any(times == 0 for _, times in _products(jaxpr, 1))


def _products(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Every product with how often it is run; 0 where only the data says."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            yield eqn, times
        elif name == "ragged_dot_general":
            yield eqn, 0
        elif name == "cond":  # one of the branches is run; ours differ in nothing that counts
            yield from _products(eqn.params["branches"][-1].jaxpr, times)
        else:
            inner = {"scan": times * eqn.params.get("length", 1), "while": 0}.get(name, times)
            for inside in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(inside):
                    yield from _products(getattr(inside, "jaxpr", inside), inner)


def _macs(eqn: Any) -> int:
    """Outputs times what is summed for each; the right operand of a convolution is its kernel."""
    outputs, numbers = math.prod(eqn.outvars[0].aval.shape), eqn.params["dimension_numbers"]
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        return outputs * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    left = eqn.invars[0].aval.shape
    return outputs * math.prod(left[d] for d in numbers[0][0])


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
