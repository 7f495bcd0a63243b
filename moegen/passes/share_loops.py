"""share_loops: the products of one expert run together, in one loop over its rows.

The kernel `runs` loops over runs of rows. What follows from types alone: grouped ops over the same
rows, with no other op between them that one makes and the next reads, can share the loop. A run's
rows then stay in the cache from product to product, and what only the next one reads is never
stored. The backward has loops of its own. Ops of a loop get one number as `loop` and stand
together; where sharing does not pay, each product has a loop to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from moegen.ir.program import Op, Program, Value, live_ops
from moegen.ir.rewrite import set_attrs
from moegen.ops.grouped import sizes_of
from moegen.ops.parts import ROWS

PRODUCTS = ("grouped_dot", "grouped_outer")
"""Ops that need a loop; the others only join one."""
KERNEL = "runs"


@dataclass
class _Loop:
    """Ops that can share a loop, the values that exist only after it, and the ops that wait."""

    key: tuple[object, ...]
    members: list[Op] = field(default_factory=list)
    inside: set[str] = field(default_factory=set)
    after: set[str] = field(default_factory=set)
    late: list[Op] = field(default_factory=list)

    def add(self, op: Op) -> None:
        """Takes an op in; what it makes for its expert exists only when all runs are done."""
        self.members.append(op)
        for result in op.results:
            (self.inside if ROWS in _dims(result) else self.after).add(result.name)

    def passes(self, op: Op) -> bool:
        """Notes an op outside the loop; returns whether it has to stand after it."""
        late = any(v.name in self.inside | self.after for v in op.inputs)
        if late:
            self.after |= {r.name for r in op.results}
        return late

    def close(self, numbers: Iterator[int], *, shared: bool) -> list[Op]:
        """The members with their loop, one for all or for each product; then what waited."""
        products = [op for op in self.members if op.name in PRODUCTS]
        inside = (self.members if shared else products) if products else []
        common = next(numbers) if inside and shared else None
        return [
            set_attrs(op, loop=next(numbers) if common is None else common) if op in inside else op
            for op in self.members
        ] + self.late


Decide = Callable[[Program, Sequence[Op]], bool]


def share_loops(program: Program, decide: Decide) -> Program:
    """Returns the program with loops numbered and their ops side by side.

    Args:
      program: with a kernel chosen for each product.
      decide: handed in by the runtime; whether it pays for ops that could share a loop.
    """
    outputs = [v for _, v in program.outputs]
    forward = {r.name for op in live_ops(program.ops, outputs) for r in op.results}
    done: list[Op] = []
    loop, numbers = _Loop(()), count()
    for op in program.ops:
        if not _can_join(op):
            (loop.late if loop.passes(op) else done).append(op)
            continue
        key = (sizes_of(op).name, op.results[0].name in forward)
        if key != loop.key or any(v.name in loop.after for v in op.inputs):
            done += loop.close(numbers, shared=decide(program, loop.members))
            loop = _Loop(key)
        loop.add(op)
    done += loop.close(numbers, shared=decide(program, loop.members))
    return program.with_(ops=tuple(done))


def _can_join(op: Op) -> bool:
    """Whether an op works on one expert's rows alone, by the kernel that loops."""
    if op.name in PRODUCTS:
        rows_first = all(_dims(v)[0] == ROWS for v in op.inputs if ROWS in _dims(v))
        return rows_first and op.attr.get("kernel") == KERNEL
    return op.name in ("grouped_sum", "per_row")


def _dims(value: Value) -> tuple[str, ...]:
    return getattr(value.type, "dims", ())
