"""Routing decisions: `assign` makes a route, `dispatch` and `combine` move rows along it.

The meanings here are one-hot products, the definition; formats come from `choose_format`.
dispatch and combine are each other's adjoint, so the backward needs one more op only:
`affinity`, the gradient of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import DtypeError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import (
    CAPACITY,
    CHOICE,
    EXPERT,
    FLOATS,
    GROUP,
    TOKEN,
    Route,
    Tensor,
    Type,
)
from moegen.ops.named import route, tensor

ROW_DIMS = (GROUP, EXPERT, CAPACITY)
"""Dims that say which slot a row belongs to, in canonical order."""
WITHIN_GROUP = (TOKEN, EXPERT, CAPACITY, CHOICE)
"""Dims of one group's decision, which no device can make from a part."""


@dataclass(frozen=True, slots=True)
class RouteArrays:
    """A route as the interpreter holds it: weights and one-hot places.

    `place` is 1 where a choice has a slot: [G, S, K, E, C] for token choice, [G, S, E, C] for
    expert choice, None for a soft route, whose weights are [G, S, E, C] themselves.
    """

    weight: Any
    place: Any | None

    def mask(self, weighted: bool) -> Any:
        """[G, S, E, C]: which token is in which slot, times its weight if asked for."""
        if self.place is None:
            return self.weight
        if self.place.ndim == 5:
            weights = self.weight[..., None, None] if weighted else 1
            return (self.place * weights).sum(2)
        return self.place * self.weight[:, None] if weighted else self.place

    def gradient(self, products: Any) -> Any:
        """The gradient of the weights from that of the weighted mask [G, S, E, C]."""
        if self.place is None:
            return products
        if self.place.ndim == 5:
            return jnp.einsum("gskec,gsec->gsk", self.place, products)
        return jnp.einsum("gsec,gsec->gec", self.place, products)


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


def check_priority(*given: Type | Literal) -> None:
    """Checks the priority of an assignment, where there is one."""
    for operand in given:
        priority = tensor(operand, "priority")
        if priority.dims != (GROUP, TOKEN) or priority.dtype not in (*FLOATS, "i32", "i8"):
            raise ShapeError(
                f"priority must be one number per token, got {priority}",
                fix='reduce it, for example mg.max(weight, over="K"), or mg.cast a bool',
            )


@register
class Assign(OpDef):
    """`assign(weight, expert, priority?, capacity=8)`: token choice into expert buffers.

    weight f32[G, S, K] and expert i32[G, S, K] say what each token wants; each expert takes
    `capacity` rows per group, in the order of `positions`. What does not fit is dropped.
    """

    name = "assign"
    attributes = ("capacity",)
    arity = (2, 3)

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
        check_priority(*operands[2:])
        if attrs["capacity"] < 1:
            raise ShapeError(
                f"capacity {attrs['capacity']} is less than 1",
                fix="raise the capacity factor or the number of tokens per group",
            )
        dims.shape((EXPERT,))
        dims.define(CAPACITY, attrs["capacity"])
        return (Route((GROUP, TOKEN, EXPERT, CAPACITY), weight),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

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
class AssignItems(OpDef):
    """`assign_items(weight, token)`: expert choice, each slot takes the token it names.

    weight f32[G, E, C] and token i32[G, E, C]; an expert names a token at most once.
    """

    name = "assign_items"
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        weight, token = tensor(operands[0], "weight"), tensor(operands[1], "token")
        if weight.dims != ROW_DIMS or token.dims != weight.dims:
            raise ShapeError(
                f"weight and token must be [{', '.join(ROW_DIMS)}], got {weight} and {token}",
                fix=f'take both from mg.top_k(gates, capacity, over="{TOKEN}", dim="{CAPACITY}")',
            )
        if not weight.is_float or token.dtype != "i32":
            raise DtypeError(
                f"weight must be real and token i32, got {weight.dtype} and {token.dtype}"
            )
        return (Route((GROUP, TOKEN, EXPERT, CAPACITY), weight),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        weight, token = arrays
        place = jax.nn.one_hot(token, env.sizes[TOKEN], dtype=weight.dtype)
        return RouteArrays(weight, jnp.moveaxis(place, -1, 1))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (cotangents[0], None)


@register
class DenseRoute(OpDef):
    """`dense_route(weight)`: a soft route, every token in every slot by weight [G, S, E, C]."""

    name = "dense_route"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        weight = tensor(operands[0], "weight")
        if weight.dims != (GROUP, TOKEN, EXPERT, CAPACITY) or not weight.is_float:
            raise ShapeError(
                f"weight must be real [{GROUP}, {TOKEN}, {EXPERT}, {CAPACITY}], got {weight}"
            )
        return (Route((GROUP, TOKEN, EXPERT, CAPACITY), weight),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return RouteArrays(arrays[0], None)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (cotangents[0],)


@register
class Kept(OpDef):
    """`kept(route)`: bool, for each choice whether it has a slot."""

    name = "kept"

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        return (Tensor("bool", route(operands[0]).weight.dims),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        path = arrays[0]
        if path.place is None or path.place.ndim == 4:
            return jnp.ones(path.weight.shape, jnp.bool_)
        return path.place.sum((-2, -1)) > 0

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (None,)


@register
class Dispatch(OpDef):
    """`dispatch(route, x)`: x[G, S, ...] into slots [G, E, C, ...]; empty slots are 0.

    `weighted=True` multiplies each row with its weight: the adjoint of combine.
    """

    name = "dispatch"
    attributes = ("weighted",)
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        path, x = route(operands[0]), tensor(operands[1])
        if x.dims[:2] != (GROUP, TOKEN) or not x.is_float:
            raise ShapeError(f"x must be real [{GROUP}, {TOKEN}, ...], got {x}")
        return (Tensor(x.dtype, (*_slot_dims(path), *x.dims[2:])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP, linear=((1,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        path, x = arrays
        mask = path.mask(attrs.get("weighted", False)).astype(x.dtype)
        return jnp.einsum("gsec,gs...->gec...", mask, x)

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
    attributes = ("weighted",)
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        path, y = route(operands[0]), tensor(operands[1])
        if y.dims[:3] != _slot_dims(path) or not y.is_float:
            raise ShapeError(f"y must be real [{', '.join(_slot_dims(path))}, ...], got {y}")
        return (Tensor(y.dtype, (GROUP, TOKEN, *y.dims[3:])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(whole=WITHIN_GROUP, linear=((1,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        path, y = arrays
        mask = path.mask(attrs.get("weighted", False)).astype(y.dtype)
        return jnp.einsum("gsec,gec...->gs...", mask, y)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        (ct,) = cotangents
        path, y = op.inputs
        if not op.attr.get("weighted"):
            return (None, b.one("dispatch", path, ct))
        d_y = b.one("dispatch", path, ct, weighted=True)
        return (b.one("affinity", path, y, ct), d_y)


@register
class Affinity(OpDef):
    """`affinity(route, y, x)`: per choice, the inner product of its slot's and token's rows.

    y is [G, E, C, ...], x is [G, S, ...]; a choice without a slot gets 0.
    """

    name = "affinity"
    arity = (3, 3)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        path, y, x = route(operands[0]), tensor(operands[1]), tensor(operands[2])
        if y.dims[3:] != x.dims[2:] or y.dims[:3] != _slot_dims(path) or y.dtype != x.dtype:
            raise ShapeError(f"rows do not match: {y} and {x}")
        return (path.weight,)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(WITHIN_GROUP, summed=tensor(operands[2]).dims[2:], linear=((1,), (2,)))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        path, y, x = arrays
        y, x = (a.reshape(*a.shape[:n], -1).astype(path.weight.dtype) for a, n in ((y, 3), (x, 2)))
        return path.gradient(jnp.einsum("gecd,gsd->gsec", y, x))


def _slot_dims(path: Route) -> tuple[str, ...]:
    group, _, expert, capacity = path.dims
    return (group, expert, capacity)
