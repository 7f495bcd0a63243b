"""Where a value is on a mesh of devices: per mesh axis one of three states.

An axis *splits* a dim (each device along it holds one part), or a sum over it is still owed
(*partial*: the value is the sum of what the devices hold), or, when it is not named, every device
along it holds the same. Printed within the type: `f32[G@data@expert, S, D]`, the first axis
outermost, and `f32[D, E] partial@data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moegen.errors import PlacementError

Axes = tuple[str, ...]
"""Names of mesh axes, outermost first."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The state of every mesh axis that is not merely replicated.

    Attributes:
      splits: (dim, axes that split it) pairs, by dim name.
      partial: axes over which a sum is owed, sorted.
    """

    splits: tuple[tuple[str, Axes], ...] = ()
    partial: Axes = ()

    def __bool__(self) -> bool:
        return bool(self.splits or self.partial)

    def axes(self, dim: str) -> Axes:
        """The axes that split a dim, outermost first; none if it is whole."""
        return dict(self.splits).get(dim, ())

    def dim_of(self, axis: str) -> str | None:
        """The dim that an axis splits, if it splits one."""
        return next((dim for dim, axes in self.splits if axis in axes), None)

    @property
    def used(self) -> Axes:
        """Every axis that splits a dim or owes a sum."""
        return (*(a for _, axes in self.splits for a in axes), *self.partial)

    def only(self, dims: Iterable[str]) -> Placement:
        """The same, as far as it concerns these dims."""
        kept = set(dims)
        return Placement(tuple((d, a) for d, a in self.splits if d in kept), self.partial)


WHOLE = Placement()
"""Every device holds all of the value: the only placement without a mesh."""


def placement(splits: Mapping[str, Axes], partial: Iterable[str] = ()) -> Placement:
    """Makes a placement; dims without axes are left out.

    Raises:
      PlacementError: if an axis appears twice.
    """
    pairs = tuple((dim, tuple(axes)) for dim, axes in sorted(splits.items()) if axes)
    made = Placement(pairs, tuple(sorted(partial)))
    for axis in made.used:
        if made.used.count(axis) > 1:
            raise PlacementError(
                f"the mesh axis {axis} appears twice in {describe(made)}",
                fix="an axis splits one dim of a value, or owes a sum",
            )
    return made


def placed_dim(dim: str, place: Placement) -> str:
    """A dim with its axes: `G@data@expert`."""
    return "@".join((dim, *place.axes(dim)))


def placed_dims(dims: Iterable[str], place: Placement) -> tuple[str, ...]:
    """The dims that are split, as an op's attribute `placed` lists them."""
    return tuple(placed_dim(d, place) for d in dims if place.axes(d))


def read_placed(texts: Iterable[str]) -> dict[str, Axes]:
    """Reads what `placed_dims` wrote."""
    found = {}
    for text in texts:
        dim, *axes = text.split("@")
        if not axes or not all(part.isidentifier() for part in (dim, *axes)):
            raise PlacementError(f'"{text}" is not a placed dim', fix='write for example "G@data"')
        found[dim] = tuple(axes)
    return found


def describe(place: Placement) -> str:
    """A placement for error messages: `G@data, partial@model`, or `whole`."""
    parts = ["@".join((dim, *axes)) for dim, axes in place.splits]
    parts += ["@".join(("partial", *place.partial))] if place.partial else []
    return ", ".join(parts) or "whole"
