"""fuse: elementwise tails of matrix products become their epilogues.

The epilogue is the author's own arithmetic, written as expressions over the product `acc`
and further operands `c0, c1, ...`; any chain of elementwise ops fuses, by no list of names.
A value that is needed elsewhere becomes a further result, so that forward and backward of
one joint program can share a fused product. A forward product takes only what the forward
needs: derivatives of activations stay with the backward. Gathers follow in `fuse_gathers`, values
per expert in `fuse_copies`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from moegen.ir import registry
from moegen.ir.program import Op, Program, Value, live_ops, make_attrs
from moegen.ir.types import placement_of
from moegen.ops.epilogue import expression

PRODUCTS = ("dot", "grouped_dot")
"""Ops that take an epilogue."""
MOST_OPS = 12
"""An epilogue longer than this would only be harder to read."""


@dataclass
class _Group:
    """A product, the elementwise ops that join it, and what they inline."""

    product: Op
    members: list[Op] = field(default_factory=list)
    inlined: list[Op] = field(default_factory=list)

    def produces(self, value: Value) -> bool:
        return any(value in op.results for op in (self.product, *self.members))


def fuse(program: Program) -> Program:
    """Returns the program with elementwise ops folded into the products they follow."""
    return _Fusion(hoist_copies(program)).run()


def hoist_copies(program: Program) -> Program:
    """Moves copies of per-expert vectors to rows up to where their operands are defined.

    The sorted format makes them where they are first read, which is after the product whose
    epilogue wants them.
    """
    ops: list[Op] = []
    for op in program.ops:
        at = len(ops)
        if op.name == "per_row":
            reads = {v.name for v in op.inputs}
            while at and not any(r.name in reads for r in ops[at - 1].results):
                at -= 1
        ops.insert(at, op)
    return program.with_(ops=tuple(ops))


class _Fusion:
    def __init__(self, program: Program):
        self.program = program
        self.definitions = program.definitions()
        self.order = {r.name: i for i, op in enumerate(program.ops) for r in op.results}
        outputs = [v for _, v in program.outputs]
        self.groups: list[_Group] = []
        self.forward = {r.name for op in live_ops(program.ops, outputs) for r in op.results}

    def run(self) -> Program:
        groups: list[_Group] = []
        joined: dict[str, _Group] = {}
        for op in self.program.ops:
            if self.takes_epilogue(op):
                groups.append(_Group(op))
                joined[op.result.name] = groups[-1]
            elif group := next((g for g in reversed(groups) if self.joins(op, g)), None):
                joined[op.result.name] = group
        self.groups = groups
        ops: list[Op] = []
        for op in self.program.ops:
            found = joined.get(op.results[0].name)
            if found is None:
                ops.append(op)
            elif op is found.product:
                ops.append(self.fused(found) if found.members else op)
        return self.program.with_(ops=live_ops(ops, self.program.returned))

    def takes_epilogue(self, op: Op) -> bool:
        """Whether elementwise ops may join: not where the product's sum is still owed."""
        owed = any(placement_of(r.type).partial for r in op.results)
        return op.name in PRODUCTS and "epilogue" not in op.attr and not owed

    def joins(self, op: Op, group: _Group) -> bool:
        """Adds an elementwise op to the group if all it reads is there or can be inlined."""
        product = group.product
        if not registry.lookup(op.name).elementwise or len(group.members) >= MOST_OPS:
            return False
        if not any(group.produces(v) for v in op.inputs) or not self.same_place(op, product):
            return False
        start, inlined = self.order[product.result.name], []
        for value in op.inputs:
            if group.produces(value):
                continue
            chain = self.computable_before(value, start)
            if chain is None:
                return False
            inlined += chain
        group.members.append(op)
        group.inlined += inlined
        return True

    def same_place(self, op: Op, product: Op) -> bool:
        """Same dims, and both in the forward or both in the backward."""
        a, b = op.results[0], product.result
        same_dims = getattr(a.type, "dims", ()) == getattr(b.type, "dims", None)
        return same_dims and (a.name in self.forward) == (b.name in self.forward)

    def computable_before(self, value: Value, start: int) -> list[Op] | None:
        """The elementwise ops that give the value from what exists before op `start`."""
        if self.order.get(value.name, -1) < start:
            return []
        op = self.definitions[value.name]
        if not registry.lookup(op.name).elementwise:
            return None
        chains = [self.computable_before(v, start) for v in op.inputs]
        if any(c is None for c in chains):
            return None
        return [op, *(o for c in chains if c for o in c)]

    def fused(self, group: _Group) -> Op:
        """The product with its epilogue: one expression per value that is needed outside."""
        inside = (group.product, *group.members)
        needed = [r for op in inside for r in op.results if self.needed_outside(r, group)]
        definitions = {op.result.name: op for op in (*group.inlined, *group.members)}
        extra: list[Value] = []
        acc = group.product.result
        expressions = tuple(expression(v, acc, definitions, extra) for v in needed)
        attrs = make_attrs({**group.product.attr, "epilogue": expressions})
        operands = (*group.product.operands, *extra)
        return Op(group.product.name, operands, attrs, tuple(needed), group.product.location)

    def needed_outside(self, value: Value, group: _Group) -> bool:
        """Whether anything but the group reads it; other groups read by what they inline."""
        within = {id(op) for op in (group.product, *group.members)}
        readers = [op for op in self.program.ops if id(op) not in within]
        readers += [op for other in self.groups if other is not group for op in other.inlined]
        return value in self.program.returned or any(value in op.inputs for op in readers)
