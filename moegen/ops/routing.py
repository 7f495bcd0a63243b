"""Routing decisions: `assign` makes a route, `dispatch` and `combine` move rows along it.

The meanings here are one-hot products, the definition; formats come from `choose_format`.
dispatch and combine are each other's adjoint, so the backward needs one more op only:
`affinity`, the gradient of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DtypeError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import CAPACITY, CHOICE, EXPERT, GROUP, TOKEN, Route, Tensor, Type
from moegen.ops.named import route, tensor

ROW_DIMS = (GROUP, EXPERT, CAPACITY)
"""Dims that say which slot a row belongs to, in canonical order."""


@dataclass(frozen=True, slots=True)
class RouteArrays:
    """A route as the interpreter holds it: weights and one-hot places.

    `place` is [G, S, K, E, C]: 1 where that choice of that token has that slot.
    """

    weight: Any
    place: Any


def positions(expert: Any, priority: Any | None, num_experts: int) -> Any:
    """Gives every choice its place in the queue of its expert.

    Queues are filled choice-major: all first choices in token order, then all second ones.
    With a priority, tokens are served by falling priority, ties in token order. Places keep
    counting past the capacity. Choices outside 0..E-1 take no place.

    Args:
      expert: i32[G, S, K].
      priority: f32[G, S] or None.
      num_experts: E.

    Returns:
      i32[G, S, K]; meaningless where the choice is outside 0..E-1.

    Source: arXiv:2106.05974, section 3 (batch prioritised routing, algorithm 1).
    """
    groups, tokens, choices = expert.shape
    if priority is None:
        order = jnp.broadcast_to(jnp.arange(tokens), (groups, tokens))
    else:
        order = jnp.argsort(-priority, axis=-1, stable=True)
    served = jnp.take_along_axis(expert, order[..., None], axis=1)
    queue = jnp.swapaxes(served, 1, 2).reshape(groups, choices * tokens)
    hot = jax.nn.one_hot(queue, num_experts, dtype=jnp.int32)
    place = jnp.sum((jnp.cumsum(hot, axis=1) - 1) * hot, axis=-1)
    place = jnp.swapaxes(place.reshape(groups, choices, tokens), 1, 2)
    return jnp.take_along_axis(place, jnp.argsort(order, axis=-1)[..., None], axis=1)


@register
class Assign(OpDef):
    """`assign(weight, expert, priority?, capacity=8)`: token choice into expert buffers.

    weight f32[G, S, K] and expert i32[G, S, K] say what each token wants; each expert takes
    `capacity` rows per group, in the order of `positions`. What does not fit is dropped.
    """

    name = "assign"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        weight, expert = tensor(operands[0], "weight"), tensor(operands[1], "expert")
        if weight.dims != (GROUP, TOKEN, CHOICE) or expert.dims != weight.dims:
            raise ShapeError(
                f"weight and expert must be [{GROUP}, {TOKEN}, {CHOICE}], "
                f"got {weight} and {expert}",
                fix="take both from mg.top_k(gates, k, over=...)",
            )
        if not weight.is_float or expert.dtype != "i32":
            raise DtypeError(
                f"weight must be real and expert i32, got {weight.dtype} and {expert.dtype}"
            )
        if len(operands) == 3 and tensor(operands[2], "priority").dims != (GROUP, TOKEN):
            raise ShapeError(
                f"priority must be one number per token, got {operands[2]}",
                fix='reduce it, for example mg.max(weight, over="K")',
            )
        if attrs["capacity"] < 1:
            raise ShapeError(
                f"capacity {attrs['capacity']} is less than 1",
                fix="raise the capacity factor or the number of tokens per group",
            )
        dims.shape((EXPERT,))
        dims.define(CAPACITY, attrs["capacity"])
        return (Route((GROUP, TOKEN, EXPERT, CAPACITY), weight),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        weight, expert, *priority = arrays
        experts = env.sizes[EXPERT]
        place = positions(expert, priority[0] if priority else None, experts)
        hot_e = jax.nn.one_hot(expert, experts, dtype=weight.dtype)
        hot_c = jax.nn.one_hot(place, attrs["capacity"], dtype=weight.dtype)
        return RouteArrays(weight, hot_e[..., :, None] * hot_c[..., None, :])

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (cotangents[0], *(None for _ in op.operands[1:]))


@register
class Kept(OpDef):
    """`kept(route)`: bool, for each choice whether it has a slot."""

    name = "kept"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        return (Tensor("bool", route(operands[0]).weight.dims),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return arrays[0].place.sum((-2, -1)) > 0

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (None,)


@register
class Dispatch(OpDef):
    """`dispatch(route, x)`: x[G, S, ...] into slots [G, E, C, ...]; empty slots are 0.

    `weighted=True` multiplies each row with its weight: the adjoint of combine.
    """

    name = "dispatch"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        path, x = route(operands[0]), tensor(operands[1])
        if x.dims[:2] != (GROUP, TOKEN) or not x.is_float:
            raise ShapeError(f"x must be real [{GROUP}, {TOKEN}, ...], got {x}")
        return (Tensor(x.dtype, (*_slot_dims(path), *x.dims[2:])),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        path, x = arrays
        place = path.place
        if attrs.get("weighted"):
            place = place * path.weight[..., None, None]
        return jnp.einsum("gskec,gs...->gec...", place.astype(x.dtype), x)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        (ct,) = cotangents
        path, x = op.inputs
        weighted = True if op.attr.get("weighted") else None
        d_x = b.one("combine", path, ct, weighted=weighted or False)
        return (b.one("affinity", path, ct, x) if weighted else None, d_x)


@register
class Combine(OpDef):
    """`combine(route, y, weighted=True)`: y[G, E, C, ...] back to tokens [G, S, ...].

    Each token gets the sum of its slots' rows, times their weights if `weighted`; a token
    without a slot gets 0.
    """

    name = "combine"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        path, y = route(operands[0]), tensor(operands[1])
        if y.dims[:3] != _slot_dims(path) or not y.is_float:
            raise ShapeError(f"y must be real [{', '.join(_slot_dims(path))}, ...], got {y}")
        return (Tensor(y.dtype, (GROUP, TOKEN, *y.dims[3:])),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        path, y = arrays
        place = path.place
        if attrs["weighted"]:
            place = place * path.weight[..., None, None]
        return jnp.einsum("gskec,gec...->gs...", place.astype(y.dtype), y)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        (ct,) = cotangents
        path, y = op.inputs
        if not op.attr["weighted"]:
            return (None, b.one("dispatch", path, ct))
        d_y = b.one("dispatch", path, ct, weighted=True)
        return (b.one("affinity", path, y, ct), d_y)


@register
class Affinity(OpDef):
    """`affinity(route, y, x)`: per choice, the inner product of its slot's and token's rows.

    y is [G, E, C, ...], x is [G, S, ...]; a choice without a slot gets 0.
    """

    name = "affinity"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        path, y, x = route(operands[0]), tensor(operands[1]), tensor(operands[2])
        if y.dims[3:] != x.dims[2:] or y.dims[:3] != _slot_dims(path):
            raise ShapeError(f"rows do not match: {y} and {x}")
        return (path.weight,)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        path, y, x = arrays
        rows = jnp.einsum("gskec,gec...->gsk...", path.place.astype(y.dtype), y)
        product = (rows * x[:, :, None]).astype(path.weight.dtype)
        return product.reshape(*path.weight.shape, -1).sum(-1)


def _slot_dims(path: Route) -> tuple[str, ...]:
    group, _, expert, capacity = path.dims
    return (group, expert, capacity)
