"""`barrier`: values as they are, but not before all of them are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moegen.ir.dims import Dims
from moegen.ir.program import Literal
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import Type
from moegen.ops.named import tensor


@register
class Barrier(OpDef):
    """`barrier(a, b, ...)`: its operands, for ops that must not be merged with earlier equal ones.

    XLA would find that the backward computes something again and keep the forward's copy
    instead, which is what recomputing is to avoid. Only `rematerialize` emits it.
    """

    name = "barrier"
    arity = (1, None)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        return tuple(tensor(o) for o in operands)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        return tuple(tensor(o) for o in operands)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return arrays if len(arrays) > 1 else arrays[0]
