"""What XLA on CPU moves, and how slow it is, beyond FLOPs and the bytes of operands and results.

Each term was found by timing; `docs/performance.md` has the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moegen.ir import registry
from moegen.ir.program import Op, Program, Value, live_ops
from moegen.ir.types import CAPACITY, EXPERT, GROUP, Tensor, value_bytes
from moegen.ops.parts import ROWS
from moegen.tune import native
from moegen.tune.target import Target

WIDENED = 8
"""Bytes per element that is widened to float32: written once, read once."""
FEW_ROWS = 24
"""Rows of an expert at which a batched product takes twice the time of its FLOPs. The floor's
ratios in float32 forward are 1.20, 1.81, 1.08, 1.45 and 1.00 on A to E; 1 + 24 / rows gives 1.24,
1.96, 1.12, 1.49 and 1.03."""

SMALL, ONE_CORE, ONE_CORE_BATCHED = 1e7, 3.5, 2.3
"""FLOPs of one expert's product at which it takes twice their time, and the most that a small one
takes, in a loop and in a batched product: XLA leaves it to one core. Products of 0.3 to 4 MFLOP
were found at 37 to 73 GFLOP/s in loops, where large ones run at 200."""
NATIVE_BYTES = 56e9
"""At which the custom call reads weights and writes their gradients, both cores together: pages of
them one after the other, read by a loop in C, are as fast."""
NATIVE_ROWS = 2.0
"""How many times as fast it moves rows as `Target.bytes`."""
NATIVE_START = 2e-5
"""Seconds until the threads of XLA's pool have begun."""


def slowdown(op: Op, flops: float, sizes: dict[str, int]) -> float:
    """How many times as long as its FLOPs a product of experts' weights takes, by XLA."""
    if op.name in ("grouped_dot", "grouped_outer"):
        return _alone(flops / sizes[EXPERT], ONE_CORE)
    if op.name != "dot" or not all(EXPERT in _dims(v) for v in (*op.inputs[:2], op.results[0])):
        return 1.0
    rows = math.prod(sizes[d] for d in (GROUP, CAPACITY) if any(d in _dims(v) for v in op.inputs))
    return FEW_ROWS / rows + _alone(flops / sizes[EXPERT], ONE_CORE_BATCHED)


def _alone(flops: float, most: float) -> float:
    """How many times as long as its FLOPs one expert's product takes, be it small."""
    return min(1.0 + SMALL / flops, most)


def widened_bytes(op: Op, sizes: dict[str, int]) -> float:
    """What a batched product in bfloat16 moves besides: XLA first widens its operands.

    With jax 0.10.2 all of them; with 0.12, those of weight gradients. Runs widen what they hold
    in the cache, so that grouped products do not pay for it.
    """
    if op.name != "dot":
        return 0.0
    tensors = [v.type for v in (*op.inputs, *op.results) if isinstance(v.type, Tensor)]
    if not all(t.dtype == "bf16" and EXPERT in t.dims for t in tensors[:2]):
        return 0.0
    return WIDENED * sum(float(math.prod(sizes[d] for d in t.dims)) for t in tensors)


def copied_bytes(op: Op, sizes: dict[str, int]) -> float:
    """What a loop copies of experts' arrays: a slice of weights in, a weight gradient out."""
    if op.name not in ("grouped_dot", "grouped_outer"):
        return 0.0
    own = [v for v in (*op.inputs, *op.results) if EXPERT in _dims(v) and len(_dims(v)) > 1]
    return 2.0 * sum(value_bytes(v.type, sizes) for v in own)


def native_seconds(
    op: Op, flops: float, moved: float, sizes: dict[str, int], target: Target
) -> float:
    """What the custom call takes for a grouped product: nothing is hidden behind the arithmetic.

    bf16 at its own rate, as AVX512-BF16 has it; a processor without takes as long as for f32.
    """
    rows_of = op.inputs[0].type
    rate = target.rate(rows_of.dtype if isinstance(rows_of, Tensor) else "f32")
    own = sum(value_bytes(v.type, sizes) for v in (*op.inputs, *op.results) if EXPERT in _dims(v))
    rows = (moved - own) / (NATIVE_ROWS * target.bytes)
    return flops / rate + own / NATIVE_BYTES + rows + NATIVE_START


@dataclass(frozen=True)
class Loops:
    """Which values over rows stay in the cache, between the ops of one loop over runs.

    Attributes:
      made: by value name, whether the loop that makes it is the forward's.
      leaves: names of the values that something outside their loop reads.
    """

    made: dict[str, bool]
    leaves: set[str]

    @classmethod
    def of(cls, program: Program) -> Loops:
        """As if each direction had one loop; where products do not share it, a little is missed.

        Beside the custom call, which has none, elementwise ops count as if in a loop of their own:
        XLA fuses them.
        """
        outputs = [v for _, v in program.outputs]
        forward = {r.name for op in live_ops(program.ops, outputs) for r in op.results}
        made = {r.name: r.name in forward for op in program.ops if _in_loop(op) for r in op.results}
        leaves = {v.name for v in program.returned}
        for op in program.ops:
            mine = op.results[0].name in forward if _in_loop(op) else None
            leaves |= {v.name for v in op.inputs if made.get(v.name, mine) is not mine}
        return cls(made, leaves)

    def moved(self, op: Op, sizes: dict[str, int]) -> float:
        """Bytes of operands and results that an op reads from memory or writes to it."""
        mine = self.made.get(op.results[0].name) if _in_loop(op) else None
        read = [v for v in op.inputs if mine is None or self.made.get(v.name) is not mine]
        written = [v for v in op.results if mine is None or v.name in self.leaves or _whole(v)]
        return float(sum(value_bytes(v.type, sizes) for v in (*read, *written)))


def _in_loop(op: Op) -> bool:
    """Whether an op runs within a loop over an expert's rows."""
    if op.attr.get("kernel") == native.NAME:
        return False
    if op.name in ("grouped_dot", "grouped_outer", "grouped_sum", "per_row"):
        return True
    return registry.lookup(op.name).elementwise and ROWS in _dims(op.results[0])


def _whole(value: Value) -> bool:
    return ROWS not in _dims(value)


def _dims(value: Value) -> tuple[str, ...]:
    return value.type.dims if isinstance(value.type, Tensor) else ()
