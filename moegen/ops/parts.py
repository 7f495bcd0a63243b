"""Row lists on a mesh: every device has a list of its own groups' rows.

Together they are one array, the devices' parts one after another, so that the dim of rows is split
as the groups are. Numbers of rows and of choices count within a part, as a device sees them.
Without a mesh there is one part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from moegen.errors import PlacementError
from moegen.ir.dims import Dims
from moegen.ir.locality import dims_of, place_results
from moegen.ir.placement import WHOLE, Axes, placement
from moegen.ir.program import Literal
from moegen.ir.registry import OpDef
from moegen.ir.types import GROUP, Type, placed, placement_of

ROWS = "N"
"""The dim of rows in the sorted format, grouped by expert."""
SENT = "Sent"
"""The dim of rows on their way: for each device that they go to, as many as may go there."""
PARTS = "Parts"
"""The dim of parts: one for every device that has groups of its own."""
GROUP_PARTS = "GroupParts"
"""The dim of parts of the groups whose rows are together on the devices that share the experts."""
LISTS = (GROUP, ROWS, SENT, PARTS)
"""Dims of which every device has its own part, and nothing else of the others'."""


class ListOp(OpDef):
    """Base of ops on lists of rows: dims of LISTS have the same axes, in every operand."""

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        axes = list_axes(operands)
        made = place_results(
            self.locality(operands, attrs), [without(o, LISTS) for o in operands], results, attrs
        )
        return tuple(with_splits(r, dict.fromkeys(LISTS, axes)) for r in made)


def list_axes(operands: Sequence[Type | Literal]) -> Axes:
    """The axes of every list among the operands.

    Raises:
      PlacementError: if they differ.
    """
    found = {placement_of(o).axes(dim) for o in operands for dim in dims_of(o) if dim in LISTS}
    if len(found) != 1:
        texts = sorted("@".join(axes) or "nothing" for axes in found)
        raise PlacementError(f"its lists are split over {' and '.join(texts)}")
    return found.pop()


def without(type_: Type | Literal, dims: Sequence[str]) -> Type | Literal:
    """The type with these dims whole."""
    if isinstance(type_, Literal):
        return type_
    place = placement_of(type_)
    return placed(type_, place.only(d for d in dims_of(type_) if d not in dims))


def with_splits(type_: Type, splits: Mapping[str, Axes], partial: Axes = ()) -> Type:
    """The type with further dims split, those it has, and sums owed."""
    place = placement_of(type_)
    more = {d: a for d, a in splits.items() if d in dims_of(type_)}
    made = placement({**dict(place.splits), **more}, (*place.partial, *partial))
    return placed(placed(type_, WHOLE), made)


def parts_of(dims: Dims) -> int:
    """How many parts lists have."""
    return dims.as_dict().get(PARTS, 1)


def in_all(numbers: Any, part: Any, size: int, parts: int) -> Any:
    """Numbers that count within a part, `size` meaning none, as numbers that count in all."""
    return jnp.where(numbers < size, numbers + part * size, parts * size)


def part_numbers(count: int, parts: int) -> Any:
    """The part that each of `count` elements in order belongs to."""
    return jnp.arange(count) // max(count // parts, 1)
