"""How ops treat values that are spread over a mesh: one rule for all of them.

An op says which dims it needs whole, which it sums over, and in which operands it is linear. From
that follows whether the devices can run it each on its own part, and where the results are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moegen.errors import PlacementError
from moegen.ir.placement import Axes, Placement, describe, placement, read_placed
from moegen.ir.program import Literal, Op, Program
from moegen.ir.types import Route, Tensor, Type, placed, placement_of


@dataclass(frozen=True, slots=True)
class Locality:
    """What devices can do alone.

    Attributes:
      whole: dims that no device may hold a part of only.
      summed: dims that are summed over; where one is split, the result is partial.
      linear: sets of operands, by position; a sum that is owed by the operands of one set, all of
        them and no other, may as well be taken after the op.
    """

    whole: frozenset[str] = frozenset()
    summed: frozenset[str] = frozenset()
    linear: tuple[frozenset[int], ...] = ()

    def carries(self, owing: frozenset[int]) -> bool:
        """Whether a sum owed by just these operands passes through."""
        return owing in self.linear


def locality(
    whole: Sequence[str] = (), summed: Sequence[str] = (), linear: Sequence[Sequence[int]] = ()
) -> Locality:
    """A Locality from plain sequences."""
    return Locality(frozenset(whole), frozenset(summed), tuple(frozenset(one) for one in linear))


def dims_of(type_: Type | Literal) -> tuple[str, ...]:
    """Every dim of an operand; those of a route include its weights'."""
    if isinstance(type_, Route):
        return tuple(dict.fromkeys((*type_.dims, *type_.weight.dims)))
    return type_.dims if isinstance(type_, Tensor) else ()


def place_results(
    how: Locality,
    operands: Sequence[Type | Literal],
    results: Sequence[Type],
    attrs: Mapping[str, Any],
) -> tuple[Type, ...]:
    """The result types with their places, each device having worked on its own part.

    Args:
      how: what the op needs.
      operands: types with places.
      results: types without.
      attrs: `placed` says which new dims each device makes its own part of only.

    Raises:
      PlacementError: if devices would need what others hold.
    """
    splits = joint_splits(operands)
    for dim in how.whole:
        if axes := splits.get(dim):
            raise PlacementError(
                f"needs all of {dim}, which is split over {_axes(axes)}",
                fix=f"gather {dim} first",
            )
    owed = _owed(how, operands)
    owed |= {axis for dim in how.summed for axis in splits.get(dim, ())}
    made = {d: a for d, a in splits.items() if d not in how.summed}
    kept = {dim for type_ in results for dim in dims_of(type_)}
    for dim, axes in made.items():
        if axes and dim not in kept:
            raise PlacementError(f"drops {dim}, which is split over {_axes(axes)}")
    for dim, axes in read_placed(attrs.get("placed", ())).items():
        if made.setdefault(dim, axes) != axes or dim not in kept:
            raise PlacementError(f"cannot place {dim} over {_axes(axes)}")
    place = placement(made, owed)
    return tuple(_placed_result(type_, place) for type_ in results)


def joint_splits(operands: Sequence[Type | Literal]) -> dict[str, Axes]:
    """How each dim is split, the same for every operand that has it.

    Raises:
      PlacementError: if operands differ, or one axis splits two dims.
    """
    found: dict[str, Axes] = {}
    for operand in operands:
        place = placement_of(operand)
        for dim in dims_of(operand):
            axes = place.axes(dim)
            if found.setdefault(dim, axes) != axes:
                raise PlacementError(
                    f"{dim} is split over {_axes(found[dim])} in one operand and over "
                    f"{_axes(axes)} in another",
                    fix="move one of them first",
                )
    placement(found)
    return found


def own_sizes(program: Program, op: Op) -> dict[str, int]:
    """The sizes of dims as the op has them on one device of the program's mesh."""
    sizes, mesh = program.sizes, dict(program.mesh)
    for value in (*op.inputs, *op.results):
        for dim, axes in placement_of(value.type).splits:
            sizes[dim] = program.sizes[dim] // math.prod(mesh[a] for a in axes)
    return sizes


def _owed(how: Locality, operands: Sequence[Type | Literal]) -> set[str]:
    """The axes over which operands owe a sum that passes through."""
    owing: dict[str, set[int]] = {}
    for i, operand in enumerate(operands):
        for axis in placement_of(operand).partial:
            owing.setdefault(axis, set()).add(i)
    for axis, which in owing.items():
        if not how.carries(frozenset(which)):
            raise PlacementError(
                f"is not linear in an operand that still owes a sum over {axis}",
                fix=f"psum over {axis} first",
            )
    return set(owing)


def _placed_result(type_: Type, place: Placement) -> Type:
    if isinstance(type_, Route) and place.partial:
        raise PlacementError(f"a route cannot be {describe(place)}")
    return placed(type_, place)


def _axes(axes: Axes) -> str:
    return "@".join(axes) or "nothing"
