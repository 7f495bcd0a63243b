"""The part of `fuse` that moves a gather of tokens into the products of its rows.

A forward that gathers inside has no permuted copy of its tokens: where the backward needs the rows,
for the gradient of the weights, it gathers them itself, from the tokens and their numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from moegen.ir.program import Op, Program, live_ops
from moegen.ops.gathered import gather_inside
from moegen.ops.parts import ROWS

Inside = Callable[[Program, Op], bool]
"""Whether a kernel is to gather the rows of a product, given as the one op it would be."""


def fuse_gathers(program: Program, inside: Inside) -> Program:
    """Returns the program with products that gather their rows, where that saves the gather.

    It does in the forward, or in the backward, if the rows are read there by such products only.

    Args:
      program: with a chosen format.
      inside: handed in by the runtime; knows the kernels and what they cannot.
    """
    outputs = [v for _, v in program.outputs]
    forward = {r.name for op in live_ops(program.ops, outputs) for r in op.results}
    users = program.users()
    fused: dict[str, Op] = {}
    for take in program.ops:
        if not _is_plain_gather(take):
            continue
        readers = users.get(take.result.name, [])
        for in_forward in (True, False):
            own = [op for op in readers if (op.results[0].name in forward) == in_forward]
            made = [gather_inside(take, op) for op in own if _reads_rows_once(op, take)]
            if len(made) == len(own) and all(inside(program, op) for op in made):
                fused.update((op.results[0].name, op) for op in made)
    ops = [fused.get(op.results[0].name, op) for op in program.ops]
    return program.with_(ops=live_ops(ops, program.returned))


def _is_plain_gather(op: Op) -> bool:
    """Whether an op takes tokens to rows, without weights."""
    rows = op.name == "take_tokens" and getattr(op.result.type, "dims", ())[:1] == (ROWS,)
    return rows and len(op.operands) == 2


def _reads_rows_once(op: Op, take: Op) -> bool:
    """Whether an op is a product of the rows and has no other use for them."""
    places = [i for i, v in enumerate(op.inputs) if v == take.result]
    return op.name == "grouped_dot" and places == [0]
