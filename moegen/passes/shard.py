"""shard: says where every value of a joint program is, and puts moves where they are needed.

One walk. Values keep the places of what they are made of; an op whose operands do not fit gets
them moved first. Rows go to their experts after `dispatch` and come back by need, before
`combine`. A sum that is owed is carried along while ops are linear and paid where it must be.
Forward and backward are one program here, so the rules are the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moegen.errors import Location
from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, dims_of
from moegen.ir.placement import WHOLE, Axes, Placement, placed_dims, placement
from moegen.ir.program import Literal, Op, Operand, Program, Value, live_ops
from moegen.ir.rewrite import rename
from moegen.ir.types import CAPACITY, EXPERT, GROUP, Key, Type, placed, placement_of
from moegen.ops.named import dims_tuple
from moegen.passes.layout import Layout
from moegen.passes.moves import Moves

CREATES = ("full", "iota", "normal", "uniform")
"""Ops without a place of their own: they, and what is computed from them alone, are made where
they are needed."""


def shard(program: Program, layout: Layout | None) -> Program:
    """Returns the joint program on the mesh; the same program if there is none.

    Raises:
      LoweringError: if a value cannot be moved to where an op needs it.
    """
    return program if layout is None else _Sharding(program, layout).run()


class _Sharding:
    def __init__(self, program: Program, layout: Layout):
        self.program, self.layout = program, layout
        self.current: Op | None = None
        self.b = Builder(Dims(program.sizes), locate=self._location)
        self.moves = Moves(self.b, {v.name for v in program.arguments})
        self.known: dict[str, Value] = {}
        self.created: dict[str, Op] = {}
        outputs = [v for _, v in program.outputs]
        self.forward = {r.name for op in live_ops(program.ops, outputs) for r in op.results}
        self.handed_over = self._handed_over()

    def _location(self) -> Location | None:
        return self.current.location if self.current else None

    def _handed_over(self) -> set[str]:
        """Forward values that the backward reads: they leave the device's function."""
        late = [op for op in self.program.ops if op.results[0].name not in self.forward]
        return {v.name for op in late for v in op.inputs} & self.forward

    def run(self) -> Program:
        p = self.program
        outputs = {n: self.home(v.type) for n, v in p.outputs}
        owed = [outputs[n] for n, v in p.outputs if f"d_{n}" in {c.name for c in p.cotangents}]
        inputs = self.arguments(p.inputs, self.layout.inputs)
        cotangents = self.arguments(p.cotangents, owed)
        for op in p.ops:
            self.current = op
            self.lower(op)
        places = dict(zip((v.name for v in p.inputs), self.layout.inputs, strict=True))
        made = p.with_(
            dims=self.b.dims.items(),
            mesh=self.layout.mesh.sizes,
            inputs=inputs,
            cotangents=cotangents,
            outputs=tuple((n, self.returned(v, outputs[n])) for n, v in p.outputs),
            gradients=tuple((n, self.returned(v, places[n])) for n, v in p.gradients),
        )
        made = made.with_(ops=live_ops(self.b.ops, made.returned))
        names = {new.name: old.name for (_, old), (_, new) in zip(
            p.outputs + p.gradients, made.outputs + made.gradients, strict=True
        )}  # fmt: skip
        return rename(made, names)

    def arguments(self, values: Sequence[Value], places: Sequence[Placement]) -> tuple[Value, ...]:
        made = []
        for value, place in zip(values, places, strict=True):
            self.b.fresh(value.name)
            made.append(replace(value, type=placed(value.type, place)))
            self.known[value.name] = made[-1]
        return tuple(made)

    def home(self, type_: Type) -> Placement:
        """Where a value is that is handed out: with the tokens of its groups."""
        return placement({GROUP: self.layout.tokens}).only(dims_of(type_))

    def returned(self, value: Value, place: Placement) -> Value:
        self.current = None
        where = dict(place.splits)
        return self.moves.to(self.value(value, where), where)

    # --- one op ------------------------------------------------------------------------

    def lower(self, op: Op) -> None:
        if self.is_created(op):
            self.created[op.result.name] = op
            return
        if op.name == "mean" and self.is_split(op):
            self.mean(op)
            return
        results = self.emit(op)
        for old, new in zip(op.results, results, strict=True):
            if old.name in self.handed_over:
                new = self.moves.paid(new)
            self.known[old.name] = new

    def is_created(self, op: Op) -> bool:
        if op.name in CREATES:
            return True
        elementwise = registry.lookup(op.name).elementwise
        return elementwise and bool(op.inputs) and all(v.name in self.created for v in op.inputs)

    def emit(self, op: Op) -> tuple[Value, ...]:
        """Emits an op with its operands where it can read them."""
        late = op.results[0].name not in self.forward
        how = registry.lookup(op.name).locality([_bare(o) for o in op.operands], op.attr)
        target = self.targets(op, how)
        operands: list[Operand] = []
        for o in op.operands:
            if isinstance(o, Value):
                value = self.value(o, target)
                owed = placement_of(value.type).partial
                operands.append(self.moves.to(value, target, owed, late=late))
            else:
                operands.append(o)
        operands = self.pay(op, how, operands, target)
        attrs = op.attr
        if op.name == "broadcast":
            attrs["placed"] = self.new_dims(op, operands) or None
        hints = [r.name for r in op.results]
        results = self.b.emit(op.name, *operands, hints=hints, location=op.location, **attrs)
        return tuple(map(self.to_experts, results)) if op.name == "dispatch" else results

    def targets(self, op: Op, how: Locality) -> dict[str, Axes]:
        """How each dim of the operands shall be split, the same for all of them.

        Tokens stay where they are, so operands with G come first; an axis that is busy on one
        dim splits no other, and what others have split by it is gathered.
        """
        values = [self.known[v.name] for v in op.inputs if v.name in self.known]
        found: dict[str, Axes] = dict.fromkeys(how.whole, ())
        for value in sorted(values, key=lambda v: GROUP not in dims_of(v.type)):
            for dim, axes in placement_of(value.type).splits:
                busy = {a for d, other in found.items() if d != dim for a in other}
                free = _until(axes, busy)
                if dim not in how.whole and len(free) > len(found.get(dim, ())):
                    found[dim] = free
        return found

    def value(self, operand: Value, target: Mapping[str, Axes]) -> Value:
        """The new value of an old one; constants and draws are made to fit the target."""
        op = self.created.get(operand.name)
        if op is None:
            return self.known[operand.name]
        dims = dims_of(operand.type)
        splits = {d: target[d] for d in dims if d in target}
        if GROUP in dims and GROUP not in target:
            splits[GROUP] = self.free_token_axes(splits)
        place = placed_dims(dims, placement(splits))
        attrs = {**op.attr, "placed": place or None} if op.name in CREATES else op.attr
        return self.moves.once((op, place), lambda: self.create(op, attrs, splits))

    def create(self, op: Op, attrs: Mapping[str, Any], splits: Mapping[str, Axes]) -> Value:
        operands = [self.value(o, splits) if isinstance(o, Value) else o for o in op.operands]
        hint = op.result.name
        return self.b.one(op.name, *operands, hint=hint, location=op.location, **attrs)

    def free_token_axes(self, splits: Mapping[str, Axes]) -> Axes:
        busy = {a for axes in splits.values() for a in axes}
        return _until(self.layout.tokens, busy)

    def new_dims(self, op: Op, operands: Sequence[Operand]) -> tuple[str, ...]:
        """New groups of a broadcast are each made by the device they belong to."""
        (x,) = (o for o in operands if isinstance(o, Value))
        if GROUP in dims_of(x.type) or GROUP not in op.attr["dims"]:
            return ()
        axes = self.free_token_axes(dict(placement_of(x.type).splits))
        return placed_dims((GROUP,), placement({GROUP: axes}))

    def pay(
        self, op: Op, how: Locality, operands: list[Operand], target: Mapping[str, Axes]
    ) -> list[Operand]:
        """Takes the sums that operands owe where the op cannot carry them, or would grow them."""
        busy = {a for axes in target.values() for a in axes}
        owing: dict[str, set[int]] = {}
        for i, operand in enumerate(operands):
            for axis in placement_of(_type(operand)).partial:
                owing.setdefault(axis, set()).add(i)
        most = max((self.elements(_type(o)) for o in operands), default=0)
        grows = sum(self.elements(r.type) for r in op.results) > most
        for axis, which in owing.items():
            if grows or axis in busy or not how.carries(frozenset(which)):
                for i in which:
                    operands[i] = self.moves.paid(operands[i], (axis,))
        return operands

    def elements(self, type_: Type | None) -> int:
        return math.prod(self.b.dims.shape(dims_of(type_))) if type_ is not None else 0

    def to_experts(self, rows: Value) -> Value:
        """Rows of all experts, with their tokens: the axes of experts go from G to E."""
        axes = self.layout.experts
        if not axes or not {GROUP, EXPERT, CAPACITY} <= set(dims_of(rows.type)):
            return rows
        splits = dict(placement_of(rows.type).splits)
        groups = tuple(a for a in splits.get(GROUP, ()) if a not in axes)
        return self.moves.to(rows, {**splits, GROUP: groups, EXPERT: axes})

    def is_split(self, op: Op) -> bool:
        value = self.known.get(op.inputs[0].name)
        place = placement_of(value.type) if value else WHOLE
        return any(place.axes(dim) for dim in dims_tuple(op.attr["over"]))

    def mean(self, op: Op) -> None:
        """A mean over a split dim is a sum, which may be owed, and a division."""
        count = math.prod(self.b.dims.shape(dims_tuple(op.attr["over"])))
        total = self.b.one(
            "sum", self.known[op.inputs[0].name], over=op.attr["over"], hint=op.result.name,
            location=op.location,
        )  # fmt: skip
        share = self.b.one("mul", total, 1.0 / max(count, 1), hint=op.result.name,
                           location=op.location)  # fmt: skip
        self.known[op.result.name] = (
            self.moves.paid(share) if op.result.name in self.handed_over else share
        )


def _until(axes: Axes, busy: set[str]) -> Axes:
    """The axes before the first that is busy: a dim gives its innermost axes up first."""
    for n, axis in enumerate(axes):
        if axis in busy:
            return axes[:n]
    return axes


def _type(operand: Operand) -> Type | None:
    return operand.type if isinstance(operand, Value) else None


def _bare(operand: Operand) -> Type | Literal:
    if isinstance(operand, Literal):
        return operand
    return operand.type if isinstance(operand.type, Key) else placed(operand.type, WHOLE)
