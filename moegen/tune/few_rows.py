"""Where a batched product of few rows is faster with the weights as its left operand, on CPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from moegen.ir.program import Op, Value
from moegen.ir.types import EXPERT, Tensor
from moegen.ops.named import dims_tuple
from moegen.tune.target import Target

MOST_ROWS = 64
"""Of an expert. The gradient of the rows, float32: with 25 rows (B) 3.13 to 1.73 times the dense
product, with 49 (D) 2.05 to 1.61, with 100 (A) 1.43 to 1.46; in bfloat16 3.05 to 1.92, 2.06 to 1.69
and 1.34 to 1.43."""
LEAST_WEIGHTS = 1 << 18
"""Elements of one expert's weights: smaller ones, that stay in the cache, were not measured."""


def weights_go_left(op: Op, sizes: Mapping[str, int], target: Target) -> bool:
    """Whether a `dot` is of few rows [E, ..., D] and weights [E, F, D], summed over D."""
    if target.platform != "cpu" or op.name != "dot":
        return False
    rows, weights, out = (_dims(v) for v in (*op.inputs[:2], op.results[0]))
    over = dims_tuple(op.attr["over"])
    if len(weights) != 3 or weights[0] != EXPERT or weights[2:] != over:
        return False
    if rows[:1] != (EXPERT,) or rows[-1:] != over or out != (*rows[:-1], weights[1]):
        return False
    count = math.prod(sizes[d] for d in rows[1:-1])
    return count <= MOST_ROWS and sizes[weights[1]] * sizes[weights[2]] >= LEAST_WEIGHTS


def _dims(value: Value) -> tuple[str, ...]:
    return value.type.dims if isinstance(value.type, Tensor) else ()
