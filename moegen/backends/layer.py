"""A joint program as one module: primal, forward, backward, and the differentiable layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moegen.backends.collectives import RESERVED, mesh_source, on_each_device, specs
from moegen.backends.loops import statements
from moegen.backends.source import Emitter, Template, emit_function, emit_module
from moegen.errors import LoweringError
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
      primal: outputs only; it may be stored in another format than the other two.
      forward: the outputs, then the residuals.
      backward: takes the residuals and the cotangents.
      templates: how each op is written.
      reserved: names of the kernels the templates use.
      doc: what the module's docstring says.

    Returns:
      Source that defines `layer(*inputs) -> tuple of outputs`, differentiable by jax.grad.
    """
    if primal.mesh:
        return _emit_on_mesh(primal, forward, backward, templates, reserved, doc)
    both = primal.with_(dims=_all_dims(primal, forward))
    e = Emitter(both, templates, reserved)
    inputs = [e.name(v) for v in primal.inputs]
    count = len(primal.outputs)
    outputs = _tuple(e, [v for _, v in primal.outputs])
    residuals = [v for _, v in forward.outputs[count:]]
    kept = f"{_tuple(e, [v for _, v in forward.outputs[:count]])}, {_tuple(e, residuals)}"
    functions = [
        emit_function("primal", inputs, statements(e, primal.ops, primal.returned), outputs),
        emit_function("forward", inputs, statements(e, forward.ops, forward.returned), kept),
        _backward(e, primal, backward, residuals),
    ]
    tail = "layer = jax.custom_vjp(primal)\nlayer.defvjp(forward, backward)"
    return Emitted(emit_module(e, functions, doc, tail), dict(e.functions))


def _all_dims(primal: Program, forward: Program) -> tuple[tuple[str, int], ...]:
    """The dims of both: a format adds some, and two formats that share one agree on its size."""
    sizes = forward.sizes | primal.sizes
    for name, size in forward.dims:
        if sizes[name] != size:
            raise LoweringError(
                f"@{primal.name}: {name} is {sizes[name]} in inference and {size} in training",
                fix="give the Schedule a format",
            )
    return tuple(sizes.items())


def _emit_on_mesh(
    primal: Program,
    forward: Program,
    backward: Program,
    templates: dict[str, Template],
    reserved: frozenset[str],
    doc: str,
) -> Emitted:
    """The same module for a mesh: each device runs the functions on its own parts."""
    e = Emitter(primal, templates, reserved | RESERVED)
    e.imports["import functools"] = None
    e.imports["from jax.sharding import PartitionSpec as P"] = None
    inputs = [e.name(v) for v in primal.inputs]
    returned = [v for _, v in primal.outputs]
    residuals = [v for _, v in forward.outputs[len(primal.outputs) :]]
    outputs, kept = _tuple(e, returned), _tuple(e, residuals)
    both = f"({specs(returned)}, {specs(residuals)})"
    functions = [
        on_each_device(primal.inputs, specs(returned))
        + "\n"
        + emit_function("primal", inputs, statements(e, primal.ops, primal.returned), outputs),
        on_each_device(primal.inputs, both)
        + "\n"
        + emit_function(
            "forward", inputs, statements(e, forward.ops, forward.returned), f"{outputs}, {kept}"
        ),
        _backward_on_mesh(e, primal, backward, residuals),
    ]
    tail = "layer = jax.custom_vjp(primal)\nlayer.defvjp(forward, backward)"
    head = mesh_source(primal)
    return Emitted(emit_module(e, [head, *functions], doc, tail), dict(e.functions))


def _backward_on_mesh(
    e: Emitter, primal: Program, backward: Program, residuals: list[Value]
) -> str:
    """The backward of each device, and the function that JAX calls."""
    gradients = dict(backward.gradients)
    given = iter(backward.cotangents)
    cotangents = [e.name(next(given)) if cotangent_type(v.type) else "_" for _, v in primal.outputs]
    arguments = [*residuals, *backward.cotangents]
    answers = [gradients[v.name] for v in primal.inputs if v.name in gradients]
    names = [e.name(v) for v in arguments]
    parts = emit_function(
        "gradients", names, statements(e, backward.ops, backward.returned), _tuple(e, answers)
    )
    order = iter(e.name(v) for v in answers)
    returned = [next(order) if v.name in gradients else "None" for v in primal.inputs]
    lines = [
        "def backward(residuals, cotangents):",
        f"    {_joined(cotangents)} = cotangents",
        f"    {_tuple(e, answers)} = gradients(*residuals, {_joined(names[len(residuals) :])})",
        f"    return {_joined(returned)}",
    ]
    decorated = on_each_device(arguments, specs(answers)) + "\n" + parts
    return decorated + "\n\n\n" + "\n".join(lines)


def _backward(e: Emitter, primal: Program, backward: Program, residuals: list[Value]) -> str:
    """The backward takes apart what JAX hands it, and answers None for non-floats."""
    gradients = dict(backward.gradients)
    given = iter(backward.cotangents)
    cotangents = [e.name(next(given)) if cotangent_type(v.type) else "_" for _, v in primal.outputs]
    answers = [e.name(gradients[v.name]) if v.name in gradients else "None" for v in primal.inputs]
    body = [f"{_joined(cotangents)} = cotangents"]
    if residuals:
        body.insert(0, f"{_joined([e.name(v) for v in residuals])} = residuals")
    body += statements(e, backward.ops, backward.returned)
    return emit_function("backward", ["residuals", "cotangents"], body, _joined(answers))


def _tuple(e: Emitter, values: list[Value]) -> str:
    return f"({_joined([e.name(v) for v in values])})" if values else "()"


def _joined(names: list[str]) -> str:
    return ", ".join(names) + ("," if len(names) == 1 else "")
