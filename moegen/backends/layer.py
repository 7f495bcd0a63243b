"""A joint program as one module: primal, forward, backward, and the differentiable layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moegen.backends.source import Emitter, Template, emit_function, emit_module
from moegen.ir.program import Program, Value
from moegen.ir.types import cotangent_type


@dataclass(frozen=True)
class Emitted:
    """The text of a module, and the functions it needs that it cannot import."""

    source: str
    functions: dict[str, Callable[..., Any]]


def emit_layer(
    primal: Program,
    forward: Program,
    backward: Program,
    templates: dict[str, Template],
    reserved: frozenset[str],
    doc: str,
) -> Emitted:
    """Writes the module.

    Args:
      primal: outputs only.
      forward: the outputs, then the residuals.
      backward: takes the residuals and the cotangents.
      templates: how each op is written.
      reserved: names of the kernels the templates use.
      doc: what the module's docstring says.

    Returns:
      Source that defines `layer(*inputs) -> tuple of outputs`, differentiable by jax.grad.
    """
    e = Emitter(primal, templates, reserved)
    inputs = [e.name(v) for v in primal.inputs]
    outputs = _tuple(e, [v for _, v in primal.outputs])
    residuals = [v for _, v in forward.outputs[len(primal.outputs) :]]
    functions = [
        emit_function(e, "primal", inputs, primal.ops, outputs),
        emit_function(e, "forward", inputs, forward.ops, f"{outputs}, {_tuple(e, residuals)}"),
        _backward(e, primal, backward, residuals),
    ]
    tail = "layer = jax.custom_vjp(primal)\nlayer.defvjp(forward, backward)"
    return Emitted(emit_module(e, functions, doc, tail), dict(e.functions))


def _backward(e: Emitter, primal: Program, backward: Program, residuals: list[Value]) -> str:
    """The backward takes apart what JAX hands it, and answers None for non-floats."""
    gradients = dict(backward.gradients)
    given = iter(backward.cotangents)
    cotangents = [e.name(next(given)) if cotangent_type(v.type) else "_" for _, v in primal.outputs]
    answers = [e.name(gradients[v.name]) if v.name in gradients else "None" for v in primal.inputs]
    body = emit_function(e, "backward", ["residuals", "cotangents"], backward.ops, _joined(answers))
    head, rest = body.split("\n", 1)
    unpack = [f"    {_joined(cotangents)} = cotangents"]
    if residuals:
        unpack.insert(0, f"    {_joined([e.name(v) for v in residuals])} = residuals")
    return "\n".join([head, *unpack, rest])


def _tuple(e: Emitter, values: list[Value]) -> str:
    return f"({_joined([e.name(v) for v in values])})" if values else "()"


def _joined(names: list[str]) -> str:
    return ", ".join(names) + ("," if len(names) == 1 else "")
