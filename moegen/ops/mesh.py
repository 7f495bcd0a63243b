"""Moves between the devices of a mesh: the same array, elsewhere.

In a program, dims have their sizes on all devices together, so that the meaning of every move is
the identity; what it changes is the type's place. `backends/collectives.py` has what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moegen.errors import PlacementError, ShapeError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.placement import Axes, Placement, describe, placement
from moegen.ir.program import Literal, Op
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import Tensor, Type, placed
from moegen.ops.named import require_dims, tensor


class Move(OpDef):
    """Base of the moves: `axes` are the mesh axes along which devices talk."""

    moves = True

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x = tensor(operands[0])
        require_dims(x, tuple(attrs[name] for name in ("over", "join", "split") if name in attrs))
        if not attrs["axes"] or not isinstance(attrs["axes"], tuple):
            raise ShapeError(f"axes={attrs['axes']!r} are no mesh axes", fix='axes=("expert",)')
        return (x,)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        x = tensor(operands[0])
        return tuple(placed(r, self.moved(x, attrs)) for r in results)

    def moved(self, x: Tensor, attrs: Mapping[str, Any]) -> Placement:
        """Where the result is."""
        raise NotImplementedError(self.name)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        return arrays[0]


def without_axes(splits: dict[str, Axes], dim: str, axes: Axes) -> dict[str, Axes]:
    """Takes the innermost axes of a dim away."""
    have = splits.get(dim, ())
    if have[len(have) - len(axes) :] != axes:
        raise PlacementError(
            f"{'@'.join((dim, *have))} does not end with {'@'.join(axes)}",
            fix="axes are moved from the innermost one on",
        )
    return {**splits, dim: have[: len(have) - len(axes)]}


def with_axes(splits: dict[str, Axes], dim: str, axes: Axes) -> dict[str, Axes]:
    """Splits a dim further."""
    return {**splits, dim: (*splits.get(dim, ()), *axes)}


def _paid(place: Placement, axes: Axes) -> tuple[str, ...]:
    """The axes that still owe a sum after it was taken over these."""
    if not set(axes) <= set(place.partial):
        raise PlacementError(f"{describe(place)} owes no sum over {', '.join(axes)}")
    return tuple(a for a in place.partial if a not in axes)


@register
class AllToAll(Move):
    """`all_to_all(x, axes=("expert",), join="G", split="E")`: axes go from one dim to another."""

    name = "all_to_all"
    attributes = ("axes", "join", "split")

    def moved(self, x: Tensor, attrs: Mapping[str, Any]) -> Placement:
        splits = without_axes(dict(x.placement.splits), attrs["join"], attrs["axes"])
        return placement(with_axes(splits, attrs["split"], attrs["axes"]), x.placement.partial)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        join, split, axes = (op.attr[n] for n in ("join", "split", "axes"))
        return (b.one("all_to_all", cotangents[0], axes=axes, join=split, split=join),)


@register
class AllGather(Move):
    """`all_gather(x, axes=("fsdp",), over="D")`: every device along the axes gets all parts.

    `again=True` marks a copy that the backward makes anew, so that the forward's is not kept.
    """

    name = "all_gather"
    attributes = ("axes", "over", "again")

    def moved(self, x: Tensor, attrs: Mapping[str, Any]) -> Placement:
        splits = without_axes(dict(x.placement.splits), attrs["over"], attrs["axes"])
        return placement(splits, x.placement.partial)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (b.one("take_part", cotangents[0], axes=op.attr["axes"], over=op.attr["over"]),)


@register
class TakePart(Move):
    """`take_part(x, axes=("model",), over="F")`: each device keeps its part of what all have."""

    name = "take_part"
    attributes = ("axes", "over")

    def moved(self, x: Tensor, attrs: Mapping[str, Any]) -> Placement:
        splits = with_axes(dict(x.placement.splits), attrs["over"], attrs["axes"])
        return placement(splits, x.placement.partial)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (b.one("all_gather", cotangents[0], axes=op.attr["axes"], over=op.attr["over"]),)


@register
class Psum(Move):
    """`psum(x, axes=("data",))`: takes the sum that is owed; every device gets it."""

    name = "psum"
    attributes = ("axes",)

    def moved(self, x: Tensor, attrs: Mapping[str, Any]) -> Placement:
        return placement(dict(x.placement.splits), _paid(x.placement, attrs["axes"]))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (cotangents[0],)


@register
class ReduceScatter(Move):
    """`reduce_scatter(x, axes=("fsdp",), over="D")`: takes the sum; each device gets one part."""

    name = "reduce_scatter"
    attributes = ("axes", "over")

    def moved(self, x: Tensor, attrs: Mapping[str, Any]) -> Placement:
        splits = with_axes(dict(x.placement.splits), attrs["over"], attrs["axes"])
        return placement(splits, _paid(x.placement, attrs["axes"]))

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        return (b.one("all_gather", cotangents[0], axes=op.attr["axes"], over=op.attr["over"]),)
