"""select_kernels: which kernel and tile runs each product, which collective moves rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program
from moegen.ir.rewrite import keep, rewrite, set_attrs

KERNEL_OPS = (
    *("dot", "grouped_dot", "gathered_dot", "grouped_outer", "grouped_sum"),
    *("exchanged_dot", "send_rows", "return_rows"),
)
"""Ops for which there is a choice, now or on other targets."""


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """A kernel's name, its tile sizes if it has any, where the choice comes from.

    `interpret`: it is run by Pallas's interpreter, not by the device it is for.
    """

    kernel: str
    tile: tuple[int, ...] = ()
    source: str = "default"
    interpret: bool = False


Decide = Callable[[Program, Op], KernelChoice]


def select_kernels(program: Program, decide: Decide) -> Program:
    """Writes the decision for every such op into its attributes.

    Args:
      program: with a chosen format.
      decide: handed in by the runtime; knows the target, its cost model and measurements.

    Raises:
      LoweringError: from `decide`, if a kernel is asked for that cannot run the op.
    """

    def rule(b: Builder, op: Op) -> Sequence[Operand] | None:
        if op.name not in KERNEL_OPS:
            return None
        choice = decide(program, op)
        chosen = set_attrs(op, kernel=choice.kernel, tile=choice.tile or None, source=choice.source)
        return keep(b, set_attrs(chosen, interpret=True) if choice.interpret else chosen)

    return rewrite(program, rule)
