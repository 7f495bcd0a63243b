"""rematerialize: the backward computes cheap values again instead of keeping them.

What a forward hands to its backward is chosen as a minimum cut: the fewest bytes from which
everything the backward reads follows by cheap ops. Products, routing decisions and random draws
are never computed twice. An MLP then keeps its pre-activations and gathers its rows again, a
gated unit keeps both of its products, and any other elementwise expert keeps no more than what
its products gave.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.rewrite import close, resolve
from moegen.ir.types import value_bytes
from moegen.passes.least_cut import least_cut
from moegen.passes.partition import partition

SAVES = ("all", "least")
"""What a Schedule can ask to keep for the backward."""
CHEAP = frozenset(
    [
        *("broadcast", "full", "iota", "merge", "split", "concat", "slice", "one_hot", "take"),
        *("sum", "mean", "max", "min", "softmax", "logsumexp"),
        *("per_row", "take_part", "take_tokens", "take_items", "slot_mask"),
    ]
)
"""Ops, besides elementwise ones, that take about as long as reading what they give."""


def rematerialize(program: Program, save: str) -> Program:
    """Returns the joint program with the backward's cheap reads computed in the backward.

    Args:
      program: with a chosen format.
      save: one of SAVES; "all" changes nothing.
    """
    if save == "all" or not program.cotangents:
        return program
    return _Backward(program).run()


def kept_values(program: Program, forward: tuple[Op, ...], read: Sequence[Value]) -> set[str]:
    """Names of the forward's values to keep, so that those that are read follow by cheap ops."""
    costs: dict[str, int] = {}
    parents: dict[str, tuple[str, ...] | None] = {}
    for op in forward:
        for result in op.results:
            costs[result.name] = value_bytes(result.type, program.sizes)
            parents[result.name] = tuple(v.name for v in op.inputs) if is_cheap(op) else None
    return least_cut(costs, parents, [v.name for v in read])


def is_cheap(op: Op) -> bool:
    """Whether an op may run once more in the backward."""
    return op.name in CHEAP or registry.lookup(op.name).elementwise


class _Backward:
    """Writes the forward as it is, then a barrier, then the backward on what is kept."""

    def __init__(self, program: Program):
        parts = partition(program)
        self.program = program
        self.forward, self.backward = parts.primal.ops, parts.backward.ops
        self.made = {r.name: op for op in self.forward for r in op.results}
        self.read = [v for v in parts.residuals if v.name in self.made]
        self.kept = kept_values(program, self.forward, self.read)
        self.b = Builder(Dims(program.sizes))
        self.known: dict[str, Operand] = {v.name: v for v in program.arguments}
        self.late: dict[str, Operand] = {}

    def run(self) -> Program:
        for value in self.program.arguments:
            self.b.fresh(value.name)
        for op in self.forward:
            self.copy(op, self.known)
        self.late |= self.known
        again = self.to_recompute()
        if again:
            self.hold_back(again)
        for op in (*again, *self.backward):
            self.copy(op, self.late)
        outputs = {v.name: self.known[v.name] for _, v in self.program.outputs}
        return close(self.program, self.b, self.late | outputs)

    def to_recompute(self) -> list[Op]:
        """The forward ops that the backward runs again, in their order."""
        needed = {v.name for v in self.read}
        again = []
        for op in reversed(self.forward):
            if any(r.name in needed - self.kept for r in op.results):
                again.append(op)
                needed |= {v.name for v in op.inputs}
        return again[::-1]

    def hold_back(self, again: Sequence[Op]) -> None:
        """What is recomputed reads what is kept from behind a barrier, with the first cotangent.

        XLA then neither merges it with the forward's copy nor runs it before the backward.
        """
        own = {r.name for op in again for r in op.results}
        read = dict.fromkeys(v for op in again for v in op.inputs if v.name not in own)
        values = (*read, *self.program.cotangents[:1])
        results = self.b.emit(
            "barrier",
            *(self.late[v.name] for v in values),
            hints=[f"{v.name}_late" for v in values],
        )
        self.late.update(zip((v.name for v in values), results, strict=True))

    def copy(self, op: Op, known: dict[str, Operand]) -> None:
        """Emits an op on the values known; a name that is taken gets a number."""
        operands = (resolve(known, o) for o in op.operands)
        hints = [r.name for r in op.results]
        results = self.b.emit(op.name, *operands, hints=hints, location=op.location, **op.attr)
        known.update(zip((r.name for r in op.results), results, strict=True))
