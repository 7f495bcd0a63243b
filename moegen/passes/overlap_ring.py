"""overlap_ring: rows travel device by device round a ring, each part worked on while others move.

The exchange of slots between P devices becomes P - 1 permutes, one for each distance, and what a
device has for itself does not wait at all. Rows that came from one device go through the experts,
and back, by ops of their own, forward and backward:

    all_to_all(x)  ->  ring_permute(ring_part(x, by=1)), ring_permute(ring_part(x, by=-1)), ...

A permute can be begun and ended by ops of their own, which compilers place around the products that
do not wait for it. Distances come in pairs, one each way, so that both directions of the ring's
links are used. In contrast to chunks of slots no number has to divide their count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from moegen.ir.locality import Locality, dims_of
from moegen.ir.placement import Axes
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.types import EXPERT, GROUP, placement_of
from moegen.ops.ring import one_part
from moegen.passes.overlap import InParts, to_experts

RING = "ring"
"""What a Schedule says to have the exchange done round a ring."""


def overlap_ring(program: Program) -> Program:
    """Returns the program with the exchange of slots by permutes; as it is if there is none."""
    return _Ring(program).run() if ring_devices(program) > 1 else program


def ring_devices(program: Program) -> int:
    """How many devices exchange slots; 0 if none do, or not all with the same ones."""
    found = {op.attr["axes"] for op in program.ops if to_experts(op)}
    mesh = dict(program.mesh)
    return math.prod(mesh[a] for a in found.pop()) if len(found) == 1 else 0


def distances(devices: int) -> tuple[int, ...]:
    """0, 1, -1, 2, -2, ...: to every device once, as seen from each."""
    pairs = (by for n in range(1, devices // 2 + 1) for by in (n, devices - n))
    return tuple(dict.fromkeys((0, *pairs)))


class _Ring(InParts):
    """Cuts the groups by the device that they come from; part n is at distance `by[n]`."""

    def __init__(self, program: Program):
        devices = ring_devices(program)
        super().__init__(program, GROUP, devices, one_part(GROUP, devices))
        first = next(op for op in program.ops if to_experts(op))
        self.axes: Axes = first.attr["axes"]
        others = set(placement_of(first.inputs[0].type).axes(GROUP)) - set(self.axes)
        outer = math.prod(dict(program.mesh)[a] for a in others)
        self.ring = {"axes": self.axes, "devices": devices, "outer": outer}
        self.by = distances(devices)

    def has_cut(self, operand: Operand) -> bool:
        """Whether it has groups of all devices, for this device's experts."""
        return isinstance(operand, Value) and self.of_experts(operand)

    def of_experts(self, value: Value) -> bool:
        experts = placement_of(value.type).axes(EXPERT)
        return GROUP in dims_of(value.type) and experts == self.axes

    def part_of(self, value: Value, n: int, hint: str) -> Value:
        way = {"by": -self.by[n] % self.count, "over": GROUP, "along": EXPERT}
        return self.b.one("ring_part", value, **self.ring, **way, hint=hint)

    def joined(self, parts: Sequence[Value], hint: str) -> Value:
        by = tuple(-by % self.count for by in self.by)
        return self.b.one(
            "ring_join", *parts, **self.ring, by=by, over=GROUP, along=EXPERT, hint=hint
        )

    def renamed(self, attr: Any) -> Any:
        """Groups that are placed, G@data, too."""
        if isinstance(attr, str) and attr.startswith(f"{GROUP}@"):
            return self.dim + attr.removeprefix(GROUP)
        return super().renamed(attr)

    def runs_in_parts(self, op: Op, how: Locality) -> bool:
        if to_experts(op):
            return True
        with_groups = [v for v in op.inputs if GROUP in dims_of(v.type)]
        return all(map(self.of_experts, with_groups)) and super().runs_in_parts(op, how)

    def of_part(self, op: Op, n: int) -> tuple[Value, ...]:
        return (self.sent(op, n),) if to_experts(op) else super().of_part(op, n)

    def lower(self, op: Op) -> None:
        if self.returns(op):
            parts = [self.returned(op, n) for n in range(self.count)]
            way = {"by": self.by, "over": EXPERT, "along": GROUP}
            hint = op.result.name
            self.known[hint] = self.b.one("ring_join", *parts, **self.ring, **way, hint=hint)
        else:
            super().lower(op)

    def returns(self, op: Op) -> bool:
        """Whether an op sends parts back to the devices of their tokens."""
        way = (op.attr.get("join"), op.attr.get("split"), op.attr.get("axes"))
        came = op.inputs[0].name in self.parts if op.inputs else False
        return op.name == "all_to_all" and way == (EXPERT, GROUP, self.axes) and came

    def sent(self, op: Op, n: int) -> Value:
        """The rows for the experts of the devices at one distance, at these devices."""
        (x,), by, name = op.inputs, self.by[n], op.result.name
        way = {"by": by, "over": EXPERT, "along": GROUP}
        part = self.b.one("ring_part", self.known[x.name], **self.ring, **way, hint=f"{x.name}_{n}")
        way = {"by": by, "join": GROUP, "split": EXPERT}
        return self.b.one("ring_permute", part, **self.ring, **way, hint=f"{name}_{n}")

    def returned(self, op: Op, n: int) -> Value:
        """What the experts of the devices at one distance made of this device's rows."""
        way = {"by": -self.by[n] % self.count, "join": EXPERT, "split": GROUP}
        part = self.parts[op.inputs[0].name][n]
        return self.b.one("ring_permute", part, **self.ring, **way, hint=f"{op.result.name}_{n}")
