"""How slots travel to their experts, in chunks or round a ring: what the overlap saves and adds."""

from __future__ import annotations

from dataclasses import dataclass

from moegen.errors import LoweringError
from moegen.ir.locality import dims_of, own_sizes
from moegen.ir.program import Op, Program
from moegen.ir.types import CAPACITY, value_bytes
from moegen.passes.exchange_inside import INSIDE, fusible
from moegen.passes.overlap import can_overlap, to_experts
from moegen.passes.overlap_ring import RING, ring_devices
from moegen.tune.cost import moving_seconds, op_cost, program_collectives
from moegen.tune.network import NETWORKS
from moegen.tune.target import Target

CHUNKS = (1, 2, 4, 8)
"""What "auto" chooses from."""
LEAST_GAIN = 0.05
"""The share of the time that chunks must save."""
WAITED_FOR = ("tpu",)
"""Platforms whose compiler waits for every all_to_all, so that chunks of it save nothing: libtpu
0.0.42.1, unless asked; it begins and ends permutes apart (docs/scaling.md)."""
LEAST_SLOTS = 8
"""Slots of an expert in a chunk: fewer leave a tile's rows empty."""


@dataclass(frozen=True, slots=True)
class Overlapped:
    """Seconds of the part of a program that is cut, forward and backward.

    Attributes:
      moving: of the collectives.
      counting: of all else.
      again: what a further chunk adds: starts, hops, and weights read once more.
    """

    moving: float
    counting: float
    again: float

    def seconds(self, chunks: int) -> float:
        """The first chunk's way in, the longer of both for the others, and what chunks add.

        Source: the pipeline of c equal parts of two stages.
        """
        both, longer = self.moving + self.counting, max(self.moving, self.counting)
        return both / chunks + (chunks - 1) / chunks * longer + (chunks - 1) * self.again

    def ring_seconds(self, devices: int) -> float:
        """A device's own rows do not wait; those of the others come while it has work.

        Permutes in pairs, one each way, load the links of a torus as one all_to_all does.
        """
        own = self.counting / devices
        return own + max(self.moving, self.counting - own) + (devices - 1) * self.again


def chunks_for(program: Program, asked: int | str, target: Target) -> int | str:
    """The number of chunks for a program in its format, RING or INSIDE; 1 where no slots travel.

    Args:
      program: after choose_format.
      asked: a number, RING, INSIDE, or "auto" for the least estimated time.
      target: the device.

    Raises:
      LoweringError: if what is asked for cannot be.
    """
    if asked == "auto":
        found = estimates(program, target)
        best = min(found, key=lambda way: found[way])
        return best if found[best] < (1 - LEAST_GAIN) * found[1] else 1
    if asked == RING and not ring_devices(program):
        raise LoweringError(
            f"@{program.name}: no exchange of {CAPACITY}={program.sizes.get(CAPACITY, 0)} slots "
            "that could go round a ring",
            fix='a mesh with an axis of experts, format="slots" or "onehot", send="rows"',
        )
    if asked == INSIDE and not fusible(program):
        raise LoweringError(
            f"@{program.name}: no product reads slots as they come from other devices",
            fix='a mesh with an axis of experts, format="slots", send="rows"',
        )
    if isinstance(asked, int) and asked != 1 and not can_overlap(program, asked):
        raise LoweringError(
            f"@{program.name}: no exchange of {CAPACITY}={program.sizes.get(CAPACITY, 0)} slots "
            f"that {asked} equal chunks could be made of",
            fix='a mesh with an axis of experts, format="slots" or "onehot", and a divisor',
        )
    return asked


def seconds_saved(program: Program, asked: int | str, target: Target) -> float:
    """What the overlap of a program is estimated to save of its time.

    Args:
      program: after choose_format.
      asked: as for `chunks_for`.
      target: the device.
    """
    if asked == 1 or not any(map(to_experts, program.ops)):
        return 0.0
    found = estimates(program, target)
    return found[1] - found.get(chunks_for(program, asked, target), found[1])


def estimates(program: Program, target: Target) -> dict[int | str, float]:
    """Seconds of the part that is cut, for every way that is possible."""
    parts = overlapped(program, target)
    ways: dict[int | str, float] = {
        n: parts.seconds(n)
        for n in CHUNKS
        if n == 1 or (_fits(program, n) and target.platform not in WAITED_FOR)
    }
    devices = ring_devices(program)
    if devices > 1 and NETWORKS[target.name].kind != "memory":
        ways[RING] = parts.ring_seconds(devices)
    return ways


def overlapped(program: Program, target: Target) -> Overlapped:
    """The seconds that the choice rests on, on one device."""
    cut = [op for op in program.ops if _is_cut(op)]
    moves = [op for op in cut if op.name == "all_to_all"]
    mesh = dict(program.mesh)
    moving = moving_seconds(program_collectives(program.with_(ops=tuple(moves))), mesh, target)
    counted = [op for op in cut if op.name != "all_to_all"]
    sizes = [own_sizes(program, op) for op in counted]
    counting = sum(op_cost(op, s, target).seconds for op, s in zip(counted, sizes, strict=True))
    weights = sum(
        value_bytes(v.type, s)
        for op, s in zip(counted, sizes, strict=True)
        for v in (*op.inputs, *op.results)
        if CAPACITY not in dims_of(v.type)
    )
    starts = len(counted) * target.overhead + len(moves) * NETWORKS[target.name].hop
    return Overlapped(moving, counting, starts + weights / target.bytes)


def _is_cut(op: Op) -> bool:
    """Whether an op is an exchange of slots, or one of the products between exchanges."""
    slots = any(CAPACITY in dims_of(v.type) for v in op.inputs)
    return op.name in ("all_to_all", "dot") and slots


def _fits(program: Program, chunks: int) -> bool:
    slots = program.sizes.get(CAPACITY, 0)
    return can_overlap(program, chunks) and slots // chunks >= LEAST_SLOTS
