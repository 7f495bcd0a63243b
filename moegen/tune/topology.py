"""Slices of TPUs by name, "v5p:8x8x8", and the boxes that a mesh's axes are of their torus."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

from moegen.errors import TuneError, did_you_mean
from moegen.tune.network import NETWORKS, Box, Network
from moegen.tune.target import TARGETS, Target

FAMILIES = {
    "v4": ("tpu_v4", "TPU v4", 3),
    "v5e": ("tpu_v5e", "TPU v5 lite", 2),
    "v5p": ("tpu_v5p", "TPU v5", 3),
    "v6e": ("tpu_v6e", "TPU v6 lite", 2),
    "tpu7x": ("tpu7x", "TPU7x", 3),
}
"""By the family of a slice: its target, JAX's name of the device, the dims of its torus."""
PER_CHIP = {"tpu7x": 2}
"""Devices that JAX counts on a chip, where it is not one."""
CUBE = 4
"""A 3D torus closes along all dims if every one is a multiple of this; a smaller slice does not."""
FULL = 16
"""A 2D torus closes along a dim of this size only."""


@dataclass(frozen=True, slots=True)
class Topology:
    """A slice of TPUs.

    Attributes:
      name: as libtpu takes it.
      family: a name of FAMILIES.
      chips: along each dim of the torus.
    """

    name: str
    family: str
    chips: tuple[int, ...]

    @property
    def target(self) -> Target:
        """What one of its devices can do."""
        return TARGETS[FAMILIES[self.family][0]]

    @property
    def network(self) -> Network:
        """Its links."""
        return NETWORKS[self.target.name]

    @property
    def per_chip(self) -> int:
        """Devices on a chip."""
        return PER_CHIP.get(self.family, 1)

    @property
    def devices(self) -> int:
        """Devices as JAX counts them."""
        return math.prod(self.chips) * self.per_chip

    @property
    def closed(self) -> tuple[bool, ...]:
        """Which dims of the torus are rings.

        Source: cloud.google.com/tpu/docs (system architecture), v4 to v6e.
        """
        if len(self.chips) == 2:
            return tuple(n == FULL for n in self.chips)
        whole = all(n % CUBE == 0 for n in self.chips)
        return (whole,) * len(self.chips)

    def stand_ins(self) -> list[Any]:
        """What JAX needs to know of the devices to make a mesh of them."""
        kind = FAMILIES[self.family][1]
        x, y, z = (*self.chips, 1)[:3]
        places = itertools.product(range(z), range(y), range(x), range(self.per_chip))
        return [
            SimpleNamespace(
                id=n, process_index=0, platform="tpu", device_kind=kind, coords=[i, j, k],
                core_on_chip=core,
            )
            for n, (k, j, i, core) in enumerate(places)
        ]  # fmt: skip


def topology(name: str) -> Topology:
    """Reads "v5p:8x8x8".

    Raises:
      TuneError: if it is no slice of a family of FAMILIES.
    """
    family, _, sizes = name.partition(":")
    if family not in FAMILIES:
        raise TuneError(
            f'topology "{name}" is of no known TPU{did_you_mean(family, FAMILIES)}',
            fix=f"start it with one of {', '.join(FAMILIES)}, as in v5p:8x8x8",
        )
    dims = FAMILIES[family][2]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or sizes.count("x") != dims - 1:
        raise TuneError(
            f'topology "{name}" does not have {dims} sizes',
            fix=f"for example {family}:{'x'.join('4' * dims)}",
        )
    return Topology(name, family, tuple(map(int, sizes.split("x"))))


def arranged(devices: Sequence[Any], sizes: Sequence[int]) -> np.ndarray:
    """The devices of a slice as an array of a mesh's sizes, axes along the torus where that goes.

    A box for each axis, rings where sizes allow; the order JAX gives them in
    `mesh_utils.create_device_mesh`, which may split a dim of the torus between axes.
    """
    return mesh_utils.create_device_mesh(list(sizes), list(devices), allow_split_physical_axes=True)


def boxes(made: Topology, mesh: Sequence[tuple[str, int]]) -> dict[str, Box]:
    """What each axis of a mesh is of the torus.

    Args:
      made: the slice.
      mesh: (axis, devices along it) pairs, as many devices as the slice has.
    """
    array = arranged(made.stand_ins(), [size for _, size in mesh])
    found = {}
    for at, (axis, size) in enumerate(mesh):
        line = np.moveaxis(array, at, 0).reshape(size, -1)[:, 0]
        coords = np.array([d.coords[: len(made.chips)] for d in line])
        extents = tuple(len(set(column)) for column in coords.T)
        closed = tuple(
            ring and extent == whole
            for ring, extent, whole in zip(made.closed, extents, made.chips, strict=True)
        )
        # Two devices of a chip talk over its own links, which are no bottleneck.
        found[axis] = Box(extents, closed)
    return found
