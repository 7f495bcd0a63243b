"""The types of the IR: tensors with named dims, routing decisions, and random keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from moegen.errors import DimError
from moegen.ir.placement import WHOLE, Placement, placed_dim

FLOATS = ("f64", "f32", "bf16", "f16")
INTEGERS = ("i32", "i8", "u8", "u32")
NARROW = ("i8", "f8e4m3")
"""What weights may be stored as beside real numbers; f8e4m3 has no arithmetic of its own."""
DTYPES = (*FLOATS, *INTEGERS, "f8e4m3", "bool")
BYTES = {
    "f64": 8,
    "f32": 4,
    "i32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "i8": 1,
    "u8": 1,
    "f8e4m3": 1,
    "bool": 1,
}
"""Size of one element."""

GROUP = "G"
"""The dim of routing groups. It rides along: routers and experts never name it."""
TOKEN = "S"
"""The dim of tokens within a group."""
EXPERT = "E"
"""The dim of experts. It rides along in experts."""
CAPACITY = "C"
"""The dim of an expert's slots within a group."""
CHOICE = "K"
"""The dim of a token's choices."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array type: element type and ordered dim names, printed `f32[G, S, D]`.

    On a mesh it also says where the array is: `f32[G@data, S, D]`.
    """

    dtype: str
    dims: tuple[str, ...]
    placement: Placement = WHOLE

    def __post_init__(self) -> None:
        for dim in self.dims:
            if type(dim) is not str or not dim.isidentifier():
                raise DimError(f"{dim!r} is not a dim name", fix="dims have names, such as S")
        if len(set(self.dims)) != len(self.dims):
            raise DimError(
                f"{self}: a dim appears twice", fix="give every dim of a tensor its own name"
            )
        for dim, _ in self.placement.splits:
            if dim not in self.dims:
                raise DimError(f"{self}: {dim} is placed on a mesh, but no dim of it")

    @property
    def is_float(self) -> bool:
        """Whether elements are real numbers, so that a gradient exists."""
        return self.dtype in FLOATS

    def __str__(self) -> str:
        owed = "".join(f"@{axis}" for axis in self.placement.partial)
        return f"{self.dtype}[{_listed(self.dims, self.placement)}]" + (owed and f" partial{owed}")


@dataclass(frozen=True, slots=True)
class Route:
    """One routing decision: which token takes which slot, and with what weight.

    `dims` are (group, token, expert, capacity). `weight` is the type of the weights as the
    router gave them; a gradient of the route has that type, and its dims say who chose:
    [G, S, K] tokens, [G, E, C] experts, [G, S, E, C] nobody (a soft route).
    Printed `route[G, S, E, C] of f32[G, S, K]`.
    """

    dims: tuple[str, str, str, str]
    weight: Tensor

    @property
    def placement(self) -> Placement:
        """A route is where its weights are."""
        return self.weight.placement

    def __str__(self) -> str:
        return f"route[{_listed(self.dims, self.placement)}] of {self.weight}"


@dataclass(frozen=True, slots=True)
class Key:
    """A random key, one for the whole layer; groups and draws are folded into it."""

    def __str__(self) -> str:
        return "key"


Type = Tensor | Route | Key


def _listed(dims: tuple[str, ...], place: Placement) -> str:
    return ", ".join(placed_dim(dim, place) for dim in dims)


def placement_of(type_: object) -> Placement:
    """Where a value of this type is; keys and numbers are everywhere."""
    return type_.placement if isinstance(type_, Tensor | Route) else WHOLE


def placed(type_: Type, place: Placement) -> Type:
    """The type at another place, as far as it has the dims; without a mesh, at WHOLE."""
    if isinstance(type_, Tensor):
        return replace(type_, placement=place.only(type_.dims))
    if isinstance(type_, Route):
        return replace(type_, weight=replace(type_.weight, placement=place.only(type_.weight.dims)))
    return type_


def cotangent_type(type_: Type) -> Tensor | None:
    """Returns the type of a value's gradient, or None where there is none."""
    if isinstance(type_, Route):
        return type_.weight
    if isinstance(type_, Tensor) and type_.is_float:
        return type_
    return None


def value_bytes(type_: Type, sizes: Mapping[str, int]) -> int:
    """Size of a value in memory; 0 for what is no array."""
    if not isinstance(type_, Tensor):
        return 0
    return math.prod(sizes[d] for d in type_.dims) * BYTES[type_.dtype]
