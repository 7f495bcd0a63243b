"""The part of `fuse` that lets products read values per expert where they are.

The sorted format copies an expert's vector, a bias say, to each of its rows. As an operand of an
epilogue it need not be copied where the kernel knows the expert whose rows it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moegen.ir.program import Op, Program, Value, live_ops
from moegen.ops.grouped import epilogue_operands, sizes_of

Reads = Callable[[Program, Op], bool]
"""Whether the kernel of a product reads values per expert, given as the op it would be."""


def fuse_copies(program: Program, reads: Reads) -> Program:
    """Returns the program with epilogues that read values per expert instead of their copies.

    Args:
      program: with epilogues.
      reads: handed in by the runtime; knows the kernels.
    """
    copies = {op.result: op for op in program.ops if op.name == "per_row"}
    ops = []
    for op in program.ops:
        made = _without_copies(op, copies) if "epilogue" in op.attr else op
        ops.append(made if made is not op and reads(program, made) else op)
    return program.with_(ops=live_ops(ops, program.returned))


def _without_copies(op: Op, copies: dict[Value, Op]) -> Op:
    """The product with what was copied as operands of its epilogue; itself if nothing was."""
    if op.name not in ("grouped_dot", "gathered_dot"):
        return op
    sizes, beside = sizes_of(op), epilogue_operands(op)
    known = [copies.get(v) for v in beside]
    read = [
        copy.inputs[0] if copy is not None and sizes_of(copy) == sizes else v
        for v, copy in zip(beside, known, strict=True)
    ]
    first = op.operands[: len(op.operands) - len(beside)]
    return op if tuple(read) == beside else replace(op, operands=(*first, *read))
