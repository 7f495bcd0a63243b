"""Rows that go round a ring: an exchange as one permute per distance, in parts that fit together.

Where devices along `axes` hold a dim in parts, the value "at distance by" has on device p what
concerns the device p + by: with dims of their parts, `E1of4` and `G1of4`, for the experts of one
device and the groups of one. `outer` is how many parts of the groups other axes make, outermost.

    all_to_all(x[E, G@expert])  =  for each distance by:
        ring_part(x, over="E", along="G")  ->  [E1of4, G@expert]   what goes to device p + by
        ring_permute(join="G", split="E")  ->  [E@expert, G1of4]   what came from device p - by
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moegen.errors import ShapeError
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, locality
from moegen.ir.placement import placement
from moegen.ir.program import Literal
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import GROUP, Tensor, Type, placed
from moegen.ops.mesh import with_axes, without_axes
from moegen.ops.named import require_dims, tensor


def one_part(dim: str, devices: int) -> str:
    """The name of the dim that one of the devices has of another: G1of4."""
    return f"{dim}1of{devices}"


class _Ring(OpDef):
    """Base: renames dims between the whole and one device's part."""

    moves = True

    def part(self, dims: Dims, dim: str, attrs: Mapping[str, Any]) -> str:
        """Defines the dim of one device's part."""
        devices, outer = attrs["devices"], _outer(dim, attrs)
        if not attrs["axes"] or devices < 1 or dims[dim] % (devices * outer):
            raise ShapeError(
                f"{devices} devices along axes={attrs['axes']!r} cannot share out "
                f"{dim}={dims[dim]} in {outer} parts"
            )
        name = one_part(dim, devices)
        dims.define(name, dims[dim] // devices)
        return name

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(linear=(range(len(operands)),))


@register
class RingPart(_Ring):
    """`ring_part(x, axes=("expert",), devices=4, outer=1, by=1, over="E", along="G")`: [E1of4, G].

    Every device along the axes, which hold `along` in parts, keeps of `over` the part of the
    device at distance `by`.
    """

    name = "ring_part"
    attributes = ("axes", "devices", "outer", "by", "over", "along")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, over = tensor(operands[0]), attrs["over"]
        require_dims(x, (over, attrs["along"]))
        self.part(dims, attrs["along"], attrs)
        return (_renamed(x, {over: self.part(dims, over, attrs)}),)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        x, over = tensor(operands[0]), attrs["over"]
        without_axes(dict(x.placement.splits), attrs["along"], attrs["axes"])
        return (_placed(results[0], x, {over: one_part(over, attrs["devices"])}),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        over, along = _places(tensor(env.op.inputs[0].type), attrs)
        n = jnp.arange(attrs["devices"])
        parts = _pull(_pull(arrays[0], *over, len(n)), along[0] + 1, along[1], len(n))
        return _push(parts[n, (n + attrs["by"]) % len(n)], *along)


@register
class RingPermute(_Ring):
    """`ring_permute(x, axes=("expert",), devices=4, outer=1, by=1, join="G", split="E")`.

    Every device gives its part to the device at distance `by`: x[E1of4, G@expert], whole in
    `join`, becomes [E@expert, G1of4], whole in `split`.
    """

    name = "ring_permute"
    attributes = ("axes", "devices", "outer", "by", "join", "split")

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, join, split = tensor(operands[0]), attrs["join"], attrs["split"]
        arrived = self.part(dims, split, attrs)
        require_dims(x, (join, arrived))
        return (_renamed(x, {join: self.part(dims, join, attrs), arrived: split}),)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        x, (join, split) = tensor(operands[0]), (attrs["join"], attrs["split"])
        part = one_part(split, attrs["devices"])
        splits = without_axes(dict(x.placement.splits), join, attrs["axes"])
        left = {one_part(d, attrs["devices"]) if d == join else d: a for d, a in splits.items()}
        left[split] = left.pop(part, ())
        whole = placement(with_axes(left, split, attrs["axes"]), x.placement.partial)
        return (placed(results[0], whole),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        x, devices = tensor(env.op.inputs[0].type), attrs["devices"]
        join, split = attrs["join"], one_part(attrs["split"], devices)
        parts = _pull(arrays[0], x.dims.index(join), _outer(join, attrs), devices)
        moved = jnp.roll(parts, attrs["by"], axis=0)
        return _push(moved, x.dims.index(split), _outer(attrs["split"], attrs))


@register
class RingJoin(_Ring):
    """`ring_join(a, b, axes=("expert",), devices=2, outer=1, by=(0, 1), over="E", along="G")`.

    Every device puts the parts of `over` that it has of all devices, at these distances, together.
    """

    name = "ring_join"
    attributes = ("axes", "devices", "outer", "by", "over", "along")
    arity = (1, None)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        parts, over, devices = [tensor(o) for o in operands], attrs["over"], attrs["devices"]
        part = self.part(dims, over, attrs)
        if sorted(by % devices for by in attrs["by"]) != list(range(devices)):
            raise ShapeError(f"by={attrs['by']} are not the distances to {devices} devices")
        if len(parts) != devices or len(set(parts)) > 1:
            raise ShapeError(f"needs {devices} parts of one type, got {', '.join(map(str, parts))}")
        require_dims(parts[0], (part, attrs["along"]))
        return (_renamed(parts[0], {part: over}),)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        found = [tensor(o) for o in operands]
        for x in found:
            without_axes(dict(x.placement.splits), attrs["along"], attrs["axes"])
        if len(set(found)) > 1:
            raise ShapeError(f"parts are in different places: {', '.join(map(str, found))}")
        over = attrs["over"]
        return (_placed(results[0], found[0], {one_part(over, attrs["devices"]): over}),)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        devices, by = attrs["devices"], [by % attrs["devices"] for by in attrs["by"]]
        over, along = _places(tensor(env.op.result.type), attrs)
        parts = jnp.stack([_pull(a, *along, devices) for a in arrays])
        n = jnp.arange(devices)
        at = jnp.argsort(jnp.array(by))[(n[:, None] - n) % devices]
        ordered = parts[at, n]  # of over, then of along
        return _push(jax.vmap(lambda x: _push(x, *along))(ordered), *over)


def _outer(dim: str, attrs: Mapping[str, Any]) -> int:
    return attrs["outer"] if dim == GROUP else 1


def _renamed(x: Tensor, names: Mapping[str, str]) -> Tensor:
    return Tensor(x.dtype, tuple(names.get(d, d) for d in x.dims))


def _placed(result: Type, x: Tensor, names: Mapping[str, str]) -> Type:
    splits = {names.get(dim, dim): axes for dim, axes in x.placement.splits}
    return placed(result, placement(splits, x.placement.partial))


def _places(x: Tensor, attrs: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Of `over` and `along`: the axis of the array, and the parts that other axes make."""
    return [(x.dims.index(attrs[n]), _outer(attrs[n], attrs)) for n in ("over", "along")]


def _pull(x: Any, axis: int, outer: int, devices: int) -> Any:
    """The devices' parts of an axis as an axis of their own, in front."""
    shape = (*x.shape[:axis], outer, devices, -1, *x.shape[axis + 1 :])
    parts = jnp.moveaxis(x.reshape(shape), axis + 1, 0)
    return parts.reshape(devices, *x.shape[:axis], -1, *x.shape[axis + 1 :])


def _push(x: Any, axis: int, outer: int) -> Any:
    """The inverse of `_pull`; `axis` is that of the array without the devices in front."""
    devices, *shape = x.shape
    parts = x.reshape(devices, *shape[:axis], outer, -1, *shape[axis + 1 :])
    return jnp.moveaxis(parts, 0, axis + 1).reshape(*shape[:axis], -1, *shape[axis + 1 :])
