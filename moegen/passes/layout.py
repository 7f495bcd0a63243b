"""Layouts: from "axis `expert` splits G and E" to where every input of a program is.

An axis that lists G splits the tokens. One that lists E too hands rows over to the devices that
hold the experts. Any further dim splits the experts' arrays: for good if the axis splits no
tokens (tensor parallel), until they are used if it does (fully sharded data parallel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moegen.errors import LoweringError, did_you_mean
from moegen.ir.placement import WHOLE, Axes, Placement, placement
from moegen.ir.program import Program, Value, dims_of
from moegen.ir.types import EXPERT, GROUP, Tensor

DEFAULT_AXES = {"data": "G", "expert": "G E", "fsdp": "G D", "model": "F"}
"""What an axis of this name splits when the schedule does not say."""


@dataclass(frozen=True, slots=True)
class MeshAxes:
    """A mesh as the passes know it.

    Attributes:
      sizes: (axis, devices along it) pairs, in the mesh's order.
      splits: (axis, dims it may split) pairs.
    """

    sizes: tuple[tuple[str, int], ...]
    splits: tuple[tuple[str, tuple[str, ...]], ...]

    def listing(self, dim: str) -> Axes:
        """The axes that may split a dim, in the mesh's order."""
        rules = dict(self.splits)
        return tuple(axis for axis, _ in self.sizes if dim in rules[axis])

    def devices(self, axes: Axes) -> int:
        """How many devices these axes span."""
        return math.prod(dict(self.sizes)[a] for a in axes)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the arrays of one program are.

    Attributes:
      mesh: the axes and what they may split.
      inputs: a place for every input.
      tokens: the axes of G wherever tokens are.
      experts: the axes of E wherever rows are with their experts.
      notes: what was decided and may surprise.
    """

    mesh: MeshAxes
    inputs: tuple[Placement, ...]
    tokens: Axes
    experts: Axes
    notes: tuple[str, ...] = ()


def token_axes(mesh: MeshAxes) -> Axes:
    """The axes that split groups; those that hand rows to experts are innermost."""
    return tuple(sorted(mesh.listing(GROUP), key=lambda a: a in mesh.listing(EXPERT)))


def make_layout(program: Program, mesh: MeshAxes, owners: Sequence[str]) -> Layout:
    """Lays a program's inputs out.

    Args:
      program: before it is sharded.
      mesh: the mesh and its rules.
      owners: "layer", "router" or "expert" for every input; only experts' arrays are split by
        more than G.

    Raises:
      LoweringError: where a dim has no equal parts, or an axis would do nothing.
    """
    tokens = token_axes(mesh)
    _check_rules(program, mesh, owners)
    _check_even(program, GROUP, tokens, mesh)
    experts, notes = _expert_axes(program, mesh)
    inputs = []
    for value, owner in zip(program.inputs, owners, strict=True):
        if not isinstance(value.type, Tensor) or owner == "router":
            inputs.append(WHOLE)
        elif owner == "layer":
            inputs.append(placement({GROUP: tokens}).only(value.type.dims))
        else:
            inputs.append(_expert_place(program, value, mesh, experts))
    return Layout(mesh, tuple(inputs), tokens, experts, notes)


def _expert_axes(program: Program, mesh: MeshAxes) -> tuple[Axes, tuple[str, ...]]:
    """The axes that share out the experts; none if there are fewer experts than devices."""
    axes = mesh.listing(EXPERT)
    experts, devices = program.sizes.get(EXPERT, 0), mesh.devices(axes)
    if not axes or experts % devices == 0:
        return axes, ()
    if experts > devices:
        _check_even(program, EXPERT, axes, mesh)
    note = f"E={experts} is less than the {devices} devices of {'@'.join(axes)}: each has all"
    return (), (note,)


def _expert_place(program: Program, value: Value, mesh: MeshAxes, experts: Axes) -> Placement:
    """An expert's array: E by the axes of experts, every other dim by the axes that list it."""
    assert isinstance(value.type, Tensor)
    splits = {EXPERT: experts} if EXPERT in value.type.dims else {}
    taken = set(mesh.listing(EXPERT))
    for dim in value.type.dims:
        axes = tuple(a for a in mesh.listing(dim) if a not in taken)
        taken |= set(axes)
        if axes:
            _check_even(program, dim, axes, mesh)
            splits[dim] = axes
    return placement(splits)


def _check_even(program: Program, dim: str, axes: Axes, mesh: MeshAxes) -> None:
    size, devices = program.sizes.get(dim, 0), mesh.devices(axes)
    if size % devices:
        fits = [n for n in range(devices, 0, -1) if size % n == 0]
        raise LoweringError(
            f"@{program.name}: {dim}={size} has no {devices} equal parts for the mesh axes "
            f"{'@'.join(axes)}",
            fix=f"give the axes {fits[0]} device(s), or make {dim} a multiple of {devices}",
        )


def _check_rules(program: Program, mesh: MeshAxes, owners: Sequence[str]) -> None:
    """Every rule names a dim of the program, and every axis splits something."""
    owned = zip(program.inputs, owners, strict=True)
    weights = dims_of([value for value, owner in owned if owner == "expert"])
    for axis, dims in mesh.splits:
        for dim in dims:
            if dim not in program.sizes:
                raise LoweringError(
                    f'@{program.name}: the mesh axis {axis} splits "{dim}", which is no dim of it'
                    f"{did_you_mean(dim, program.sizes)}",
                    fix=f"dims are {', '.join(program.sizes)}",
                )
        if GROUP not in dims and not set(dims) & weights:
            raise LoweringError(
                f"@{program.name}: the mesh axis {axis} would split nothing: no expert's array "
                f"has {' or '.join(dims) or 'the dims of no rule'}",
                fix=f'name {GROUP}, or one of {", ".join(sorted(weights))}: axes={{"{axis}": ...}}',
            )
