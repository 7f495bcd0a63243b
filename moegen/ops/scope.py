"""One decision over all groups: who is served when the experts' buffers are shared by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from moegen.errors import ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import CHOICE, EXPERT, GROUP, TOKEN, Tensor, Type
from moegen.ops.named import tensor
from moegen.ops.routing import check_priority, positions


@register
class Served(OpDef):
    """`served(expert, priority?, capacity=8)`: bool, which choices of all groups have a place.

    Each expert takes G * capacity choices, from whichever groups they come: all first choices
    before all second ones, by falling priority, ties in the order of groups and tokens. On a mesh
    every device looks at the choices and priorities of all, which are gathered; rows stay.
    """

    name = "served"
    attributes = ("capacity",)
    arity = (1, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        expert = tensor(operands[0], "expert")
        if expert != Tensor("i32", (GROUP, TOKEN, CHOICE)):
            raise ShapeError(f"expert must be i32[{GROUP}, {TOKEN}, {CHOICE}], got {expert}")
        check_priority(*operands[1:])
        if attrs["capacity"] < 1:
            raise ShapeError(f"capacity {attrs['capacity']} is less than 1")
        dims.shape((EXPERT,))
        return (Tensor("bool", expert.dims),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=(GROUP, TOKEN, CHOICE))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        expert, *priority = arrays
        groups, tokens, choices = expert.shape
        queue = expert.reshape(1, groups * tokens, choices)
        first = priority[0].reshape(1, -1) if priority else None
        place = positions(queue, first, env.sizes[EXPERT]).reshape(expert.shape)
        chosen = (expert >= 0) & (expert < env.sizes[EXPERT])
        return jnp.asarray(chosen & (place < attrs["capacity"] * groups))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return tuple(None for _ in op.operands)
