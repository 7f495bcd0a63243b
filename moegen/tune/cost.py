"""The cost model: FLOPs, bytes and starts of a program against a target's rates.

An estimate to rank lowerings by, not a clock: each op takes the longer of its arithmetic
and its memory traffic, plus the time to start it. On a mesh, of one device's own parts; a move
takes what `tune/network.py` says of its links, and nothing runs meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from moegen.ir.locality import own_sizes
from moegen.ir.program import Op, Program, Value
from moegen.ir.types import EXPERT, Tensor, Type, placement_of, value_bytes
from moegen.tune import cpu_cost, native
from moegen.tune.network import NETWORKS, Box, Collective, joined, ring, seconds
from moegen.tune.target import Target

MOVES = {
    "all_to_all": "all_to_all",
    "swap_parts": "all_to_all",
    "send_rows": "all_to_all",
    "return_rows": "all_to_all",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "psum": "all_reduce",
    "ring_permute": "permute",
}
"""Ops that are collectives, and which."""
INSIDE = {"exchanged_dot": "all_to_all"}
"""Ops that are collectives and products."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating point operations, memory bytes and the estimated seconds, of one device.

    `moving` is the part of the seconds that collectives take.
    """

    flops: float
    bytes: float
    seconds: float
    moving: float = 0.0


def program_cost(program: Program, target: Target, boxes: Mapping[str, Box] | None = None) -> Cost:
    """Sums the costs of a program's ops.

    Args:
      program: at any stage.
      target: the device.
      boxes: what each mesh axis is of the network; one that is not named is a ring.
    """
    loops = cpu_cost.Loops.of(program) if target.platform == "cpu" else None
    flops = moved = spent = 0.0
    for op in program.ops:
        if op.name not in MOVES:
            sizes = own_sizes(program, op)
            cost = op_cost(op, sizes, target, loops.moved(op, sizes) if loops else None)
            flops, moved, spent = flops + cost.flops, moved + cost.bytes, spent + cost.seconds
    moving = moving_seconds(program_collectives(program), dict(program.mesh), target, boxes)
    return Cost(flops, moved, spent + moving, moving)


def program_collectives(program: Program) -> list[Collective]:
    """The collectives of a program, as its moves ask for them."""
    mesh, found, kinds = dict(program.mesh), [], MOVES | INSIDE
    for op in program.ops:
        if op.name in kinds and op.attr.get("by") != 0:
            axes = op.attr["axes"]
            devices = math.prod(mesh[a] for a in axes)
            # Of ragged rows the lists are as long as the worst case where they arrive only.
            ragged = op.name in ("send_rows", "return_rows")
            moved = (op.inputs[0], *(op.results if ragged else ()))
            nbytes = min(_own_bytes(program, value) for value in moved)
            distance = op.attr.get("by")
            found.append(Collective(kinds[op.name], axes, devices, nbytes, distance=distance))
    return found


def moving_seconds(
    found: Sequence[Collective],
    mesh: Mapping[str, int],
    target: Target,
    boxes: Mapping[str, Box] | None = None,
) -> float:
    """Seconds of collectives one after the other."""
    network, known = NETWORKS[target.name], boxes or {}
    return sum(
        one.times
        * seconds(
            one.kind,
            one.nbytes,
            joined([known.get(a, ring(mesh[a])) for a in one.axes]),
            network,
            one.distance,
        )
        for one in found
    )


def _own_bytes(program: Program, value: Value) -> int:
    """Bytes of the part of a value that one device has."""
    sizes, mesh = program.sizes, dict(program.mesh)
    for dim, axes in placement_of(value.type).splits:
        sizes[dim] = program.sizes[dim] // math.prod(mesh[a] for a in axes)
    return value_bytes(value.type, sizes)


def op_cost(op: Op, sizes: dict[str, int], target: Target, moved: float | None = None) -> Cost:
    """Costs of one op: products by their dims, the rest by their elements.

    Args:
      op: any op.
      sizes: of the program's dims.
      target: the device.
      moved: bytes of operands and results that pass through memory; None: all of them.
    """
    flops = op_flops(op, sizes)
    if moved is None:
        moved = sum(value_bytes(v.type, sizes) for v in (*op.inputs, *op.results))
    if op.attr.get("kernel") == native.NAME:
        return Cost(flops, moved, cpu_cost.native_seconds(op, flops, moved, sizes, target))
    if op.name in ("grouped_dot", "grouped_outer") and op.attr.get("block", 1) == 1:
        flops *= _ragged_waste(sizes, target)
    if target.platform != "cpu":
        return Cost(flops, moved, max(flops / target.flops, moved / target.bytes) + target.overhead)
    busy = flops / target.flops * cpu_cost.slowdown(op, flops, sizes)
    spent = max(busy, moved / target.bytes) + target.overhead
    besides = cpu_cost.widened_bytes(op, sizes) + cpu_cost.copied_bytes(op, sizes)
    return Cost(flops, moved + besides, spent + besides / target.bytes)


def op_flops(op: Op, sizes: dict[str, int]) -> float:
    """Multiplications and additions of an op."""
    if op.name == "exchanged_dot":
        op = replace(op, name="dot", operands=(op.results[1], op.operands[1]))
    if op.name in ("dot", "grouped_dot", "gathered_dot", "grouped_outer"):
        a, b = (op.results[0], op.inputs[2]) if op.name == "gathered_dot" else op.inputs[:2]
        dims = dict.fromkeys((*_dims(a), *_dims(b)))
        grouped = op.name != "dot"
        return 2.0 * math.prod(sizes[d] for d in dims if not (grouped and d == EXPERT))
    if op.name == "slot_mask":
        return sizes["K"] * _elements(op.results[0].type, sizes)
    work = sum(_elements(v.type, sizes) for v in op.inputs[:1]) if "over" in op.attr else 0.0
    return work + sum(_elements(r.type, sizes) for r in op.results)


def _ragged_waste(sizes: dict[str, int], target: Target) -> float:
    """XLA computes a ragged dot on CPU as one dense product per expert."""
    return float(sizes[EXPERT]) if target.platform == "cpu" else 1.0


def _elements(type_: Type, sizes: dict[str, int]) -> float:
    return float(math.prod(sizes[d] for d in type_.dims)) if isinstance(type_, Tensor) else 0.0


def _dims(value: Value) -> tuple[str, ...]:
    return value.type.dims if isinstance(value.type, Tensor) else ()
