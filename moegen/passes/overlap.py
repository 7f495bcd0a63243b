"""overlap: rows travel to their experts and back in chunks, so that one moves while another counts.

The slots of every expert are cut into equal parts. Each part is exchanged, goes through the
experts and comes back by ops of its own, forward and backward, with nothing between the parts:
which of them runs while another travels is the scheduler's choice. What sums over slots, the
gradient of a weight, adds up the parts. An op that needs all slots of an expert gets them joined.

A chunk is to this pass what a device is to `shard`: the same rules say what can be done in parts.
`overlap_ring` cuts by the devices that rows come from instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, dims_of
from moegen.ir.program import Literal, Op, Operand, Program, Value
from moegen.ir.rewrite import close, keep, resolve
from moegen.ir.types import CAPACITY, EXPERT, GROUP


def overlap(program: Program, chunks: int) -> Program:
    """Returns the program with the exchange of slots in so many chunks; 1 changes nothing.

    Args:
      program: on a mesh, in a format with slots.
      chunks: a divisor of the slots of an expert; see `can_overlap`.
    """
    if chunks == 1 or not can_overlap(program, chunks):
        return program
    return _Chunks(program, chunks).run()


def can_overlap(program: Program, chunks: int) -> bool:
    """Whether there are slots that travel, and whole numbers of them in a chunk."""
    slots = program.sizes.get(CAPACITY, 0)
    return slots % chunks == 0 and any(map(to_experts, program.ops))


def to_experts(op: Op) -> bool:
    """Whether an op sends slots to the devices that hold their experts."""
    way = (op.attr.get("join"), op.attr.get("split"))
    rows = op.name == "all_to_all" and len(dims_of(op.inputs[0].type)) > 3  # not their numbers
    return rows and way == (GROUP, EXPERT) and _has_slots(op.operands[0])


def part_dim(some: int, chunks: int) -> str:
    """The name of the dim of the slots in some of the chunks: C2of4."""
    return CAPACITY if some == chunks else f"{CAPACITY}{some}of{chunks}"


class InParts:
    """One walk that emits ops on slots once for every part of a dim.

    Args:
      program: on a mesh, in a format with slots.
      cut: the dim that is cut.
      count: the number of parts.
      dim: the name of the dim of one part.
    """

    def __init__(self, program: Program, cut: str, count: int, dim: str):
        self.program, self.cut, self.count, self.dim = program, cut, count, dim
        self.current: Op | None = None
        dims = Dims(program.sizes)
        dims.define(dim, program.sizes[cut] // count)
        self.b = Builder(dims, lambda: self.current.location if self.current else None)
        self.known: dict[str, Operand] = {v.name: v for v in program.arguments}
        self.parts: dict[str, tuple[Value, ...]] = {}
        for value in program.arguments:
            self.b.fresh(value.name)

    def run(self) -> Program:
        """Returns the program in parts."""
        for op in self.program.ops:
            self.current = op
            self.lower(op)
        self.current = None
        for _, value in (*self.program.outputs, *self.program.gradients):
            self.whole(value)
        return close(self.program, self.b, self.known)

    # --- what the ways to cut differ in ---------------------------------------------------

    def has_cut(self, operand: Operand) -> bool:
        """Whether an operand can be had in parts."""
        raise NotImplementedError

    def part_of(self, value: Value, n: int, hint: str) -> Value:
        """Part n of a value that is whole."""
        raise NotImplementedError

    def joined(self, parts: Sequence[Value], hint: str) -> Value:
        """The whole of all parts."""
        raise NotImplementedError

    def runs_in_parts(self, op: Op, how: Locality) -> bool:
        """Whether parts can be worked on one by one: what is cut is nowhere needed at once."""
        if registry.lookup(op.name).moves:
            return self.cut not in (op.attr.get("join"), op.attr.get("split"), op.attr.get("over"))
        kept = all(self.cut in dims_of(r.type) for r in op.results)
        return self.cut not in how.whole and (kept or self.cut in how.summed)

    # --- the walk -------------------------------------------------------------------------

    def lower(self, op: Op) -> None:
        """Emits an op once, or once for every part."""
        how = registry.lookup(op.name).locality([_bare(o) for o in op.operands], op.attr)
        split = to_experts(op) or any(v.name in self.parts for v in op.inputs)
        if not split or not self.runs_in_parts(op, how):
            for value in op.inputs:
                self.whole(value)
            mapped = Op(op.name, tuple(resolve(self.known, o) for o in op.operands), op.attrs,
                        op.results, op.location)  # fmt: skip
            self.known.update(zip((r.name for r in op.results), keep(self.b, mapped), strict=True))
            return
        made = [self.of_part(op, n) for n in range(self.count)]
        for old, parts in zip(op.results, zip(*made, strict=True), strict=True):
            if self.cut in how.summed:
                self.known[old.name] = self.added(parts, old.name)
            else:
                self.parts[old.name] = parts

    def of_part(self, op: Op, n: int) -> tuple[Value, ...]:
        """Emits an op for part n."""
        operands = [self.part(o, n) if self.has_cut(o) else resolve(self.known, o)
                    for o in op.operands]  # fmt: skip
        attrs = {name: self.renamed(value) for name, value in op.attr.items()}
        hints = [f"{r.name}_{n}" for r in op.results]
        return self.b.emit(op.name, *operands, hints=hints, location=op.location, **attrs)

    def renamed(self, attr: Any) -> Any:
        """An attribute with the dim of a part for the one that is cut."""
        if isinstance(attr, tuple):
            return tuple(self.renamed(a) for a in attr)
        return self.dim if attr == self.cut else attr

    def part(self, operand: Operand, n: int) -> Value:
        """Part n of a value; cut out of one that is whole."""
        assert isinstance(operand, Value)
        if operand.name not in self.parts:
            value = resolve(self.known, operand)
            assert isinstance(value, Value)
            self.parts[operand.name] = tuple(
                self.part_of(value, i, f"{operand.name}_{i}") for i in range(self.count)
            )
        return self.parts[operand.name][n]

    def whole(self, value: Value) -> None:
        """Joins the parts of a value that something needs whole."""
        if value.name not in self.known and value.name in self.parts:
            self.known[value.name] = self.joined(self.parts[value.name], value.name)

    def added(self, parts: Sequence[Value], hint: str) -> Value:
        """The sum of what the parts gave."""
        total = parts[0]
        for part in parts[1:]:
            total = self.b.one("add", total, part, hint=hint)
        return total


class _Chunks(InParts):
    """Cuts the slots of every expert into equal chunks."""

    def __init__(self, program: Program, chunks: int):
        super().__init__(program, CAPACITY, chunks, part_dim(1, chunks))

    def has_cut(self, operand: Operand) -> bool:
        return _has_slots(operand)

    def part_of(self, value: Value, n: int, hint: str) -> Value:
        start = n * self.b.dims[self.dim]
        return self.b.one("slice", value, over=CAPACITY, start=start, into=self.dim, hint=hint)

    def joined(self, parts: Sequence[Value], hint: str) -> Value:
        joined, *rest = parts
        for n, part in enumerate(rest, 1):
            dims, into = (part_dim(n, self.count), self.dim), part_dim(n + 1, self.count)
            joined = self.b.one("concat", joined, part, dims=dims, into=into, hint=hint)
        return joined


def _has_slots(operand: Operand) -> bool:
    return isinstance(operand, Value) and CAPACITY in dims_of(operand.type)


def _bare(operand: Operand) -> Any:
    return operand if isinstance(operand, Literal) else operand.type
