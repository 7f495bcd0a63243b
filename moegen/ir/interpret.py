"""The interpreter: runs a program op by op with each op's reference meaning.

It is slow and plain on purpose. Passes and emitted code are compared with it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from moegen.errors import ShapeError
from moegen.ir import registry
from moegen.ir.dims import Dims
from moegen.ir.program import Op, Program, Value
from moegen.ir.types import Tensor


def interpret(program: Program, *arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs a program at any stage of the pipeline.

    Args:
      program: what to run.
      *arguments: one array (or key) per input, then one per cotangent.

    Returns:
      The outputs and the gradients, each a dict of arrays by name.

    Raises:
      ShapeError: if the number of arguments or a shape does not fit.
    """
    dims = Dims(program.sizes)
    env = dict(zip([v.name for v in program.arguments], arguments, strict=False))
    if len(arguments) != len(program.arguments):
        raise ShapeError(
            f"@{program.name} takes {len(program.arguments)} arguments, {len(arguments)} are given"
        )
    for value in program.arguments:
        _check_shape(value, env[value.name], dims)
    for op in program.ops:
        _run(op, env, dims)
    outputs = {n: env[v.name] for n, v in program.outputs}
    return outputs, {n: env[v.name] for n, v in program.gradients}


def _run(op: Op, env: dict[str, Any], dims: Dims) -> None:
    arrays = [env[o.name] if isinstance(o, Value) else o.value for o in op.operands]
    results = registry.lookup(op.name).evaluate(registry.Eval(op, dims), *arrays, **op.attr)
    if len(op.results) == 1:
        results = (results,)
    for value, array in zip(op.results, results, strict=True):
        env[value.name] = array


def _check_shape(value: Value, array: Any, dims: Dims) -> None:
    if isinstance(value.type, Tensor) and jnp.shape(array) != dims.shape(value.type.dims):
        raise ShapeError(
            f"{value}: {value.type} has shape {dims.shape(value.type.dims)}, "
            f"given is {jnp.shape(array)}"
        )
