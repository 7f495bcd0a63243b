"""partition: a joint program as the functions that run: primal, forward and backward.

What the backward needs of the forward are its residuals; inputs are handed over as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moegen.ir.program import Op, Program, Value, live_ops, make_attrs


@dataclass(frozen=True, slots=True)
class Parts:
    """The three functions of a layer.

    Attributes:
      primal: outputs only.
      forward: outputs, and the residuals as further outputs.
      backward: residuals and cotangents in, gradients out.
      residuals: what is handed from forward to backward, inputs included.
    """

    primal: Program
    forward: Program
    backward: Program
    residuals: tuple[Value, ...]


def partition(program: Program) -> Parts:
    """Splits a joint program: what the outputs need is forward, the rest is backward."""
    outputs = tuple(v for _, v in program.outputs)
    gradients = tuple(v for _, v in program.gradients)
    primal_ops = live_ops(program.ops, outputs)
    forward_names = {r.name for op in primal_ops for r in op.results}
    backward_ops = _backward_ops(program.ops, gradients, forward_names)
    residuals = _residuals(program, backward_ops, gradients)
    forward_ops = live_ops(program.ops, outputs + residuals)
    base = program.with_(cotangents=(), gradients=())
    named = tuple((v.name, v) for v in residuals)
    return Parts(
        primal=base.with_(ops=without_unread(primal_ops, outputs)),
        forward=base.with_(
            ops=without_unread(forward_ops, outputs + residuals), outputs=program.outputs + named
        ),
        backward=program.with_(inputs=residuals, ops=backward_ops, outputs=()),
        residuals=residuals,
    )


def without_unread(ops: Sequence[Op], outputs: Sequence[Value]) -> tuple[Op, ...]:
    """The ops without results of epilogues that nothing reads: a kernel would store them."""
    read = {v.name for op in ops for v in op.inputs} | {v.name for v in outputs}
    return tuple(_narrowed(op, read) for op in ops)


def _narrowed(op: Op, read: set[str]) -> Op:
    kept = [i for i, r in enumerate(op.results) if r.name in read]
    texts = op.attr.get("epilogue")
    if texts is None or len(kept) == len(op.results):
        return op
    attrs = make_attrs({**op.attr, "epilogue": tuple(texts[i] for i in kept)})
    return replace(op, attrs=attrs, results=tuple(op.results[i] for i in kept))


def _backward_ops(
    ops: tuple[Op, ...], gradients: tuple[Value, ...], forward: set[str]
) -> tuple[Op, ...]:
    """Ops the gradients need that the forward does not compute anyway.

    An op that needs no cotangent but serves the gradients only (a derivative of an
    activation, say) runs in the backward: handing it over would cost memory.
    """
    needed = live_ops(ops, gradients)
    return tuple(op for op in needed if not any(r.name in forward for r in op.results))


def _residuals(
    program: Program, backward_ops: tuple[Op, ...], gradients: tuple[Value, ...]
) -> tuple[Value, ...]:
    own = {r.name for op in backward_ops for r in op.results}
    own |= {v.name for v in program.cotangents}
    reads = [v for op in backward_ops for v in op.inputs] + list(gradients)
    return tuple(v for v in dict.fromkeys(reads) if v.name not in own)
