"""What a collective costs on the links between devices: bytes, links and hops.

A mesh axis is a box of a torus, or a group behind a switch. Bytes are what one device holds before
the collective (of an all_gather and a permute) or of all parts together (else). On a torus every
device reaches its neighbours only: a gather or a scatter fills all links of the box, an all_to_all
is bound by the narrowest cut through its middle.

Source of the formulas: jax-ml.github.io/scaling-book, sharding and tpus. With R devices in one ring
of links of W bytes/s each way, an all_gather of V bytes takes V / (2 W), an all_to_all of V bytes
(of all devices together) V / (8 W); a line, which does not close, twice that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moegen.errors import ScheduleError

KINDS = ("all_to_all", "all_gather", "reduce_scatter", "all_reduce", "permute")
"""The collectives that have a cost."""


@dataclass(frozen=True, slots=True)
class Network:
    """The links of a kind of device.

    Attributes:
      kind: "torus", "switch", or "memory" where the devices share it.
      link: bytes per second one way: of each link of a torus, of each device into a switch.
      hop: seconds that a message takes to the next device.
      dims: dims of the torus, 0 where there is none.
      source: where the figures come from.
    """

    kind: str
    link: float
    hop: float
    dims: int = 0
    source: str = ""


_ICI = "cloud.google.com/tpu/docs; hop: scaling-book, about 1 us"
NETWORKS = {
    "cpu": Network("memory", 1e10, 1e-5, source="order of one core's copies"),
    "tpu_v4": Network("torus", 4.5e10, 1e-6, 3, _ICI),
    "tpu_v5e": Network("torus", 5e10, 1e-6, 2, _ICI),
    "tpu_v5p": Network("torus", 1e11, 1e-6, 3, _ICI),
    "tpu_v6e": Network("torus", 1e11, 1e-6, 2, _ICI),
    # A chip's links serve its two cores, which JAX counts as two devices.
    "tpu7x": Network("torus", 5e10, 1e-6, 3, _ICI),
    "a100": Network("switch", 3e11, 2e-6, source="NVLink 3 data sheet, one way, within a node"),
    "h100": Network("switch", 4.5e11, 2e-6, source="NVLink 4 data sheet, one way, within a node"),
    "h200": Network("switch", 4.5e11, 2e-6, source="NVLink 4 data sheet, one way, within a node"),
    "b200": Network("switch", 9e11, 2e-6, source="NVLink 5 data sheet, one way, within a node"),
}
"""By the name of a target."""


@dataclass(frozen=True, slots=True)
class Box:
    """The devices of one mesh axis: extents along the dims of a torus, and which close to rings."""

    extents: tuple[int, ...]
    closed: tuple[bool, ...]

    @property
    def devices(self) -> int:
        """How many devices it holds."""
        return math.prod(self.extents)

    @property
    def links(self) -> int:
        """Links that every device has within it, the ones in the corners too."""
        return sum(_links(e, c) for e, c in zip(self.extents, self.closed, strict=True))

    @property
    def hops(self) -> int:
        """Devices between the two that are farthest apart, and one."""
        pairs = zip(self.extents, self.closed, strict=True)
        return sum(e // 2 if c else e - 1 for e, c in pairs)


@dataclass(frozen=True, slots=True)
class Collective:
    """Collectives of one kind, size and group.

    Attributes:
      kind: as in `moegen.tune.network`.
      axes: the mesh axes that its devices differ in, in the mesh's order.
      devices: in a group.
      nbytes: what one device puts in.
      times: how often it runs in a call of the program.
      distance: of a permute, how many devices on the receiver is; None: it is not known.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    nbytes: int
    times: int = 1
    distance: int | None = None


def ring(devices: int) -> Box:
    """What an axis is taken to be where nobody knows: one ring that closes."""
    return Box((devices,), (devices > 2,))


def seconds(
    kind: str, nbytes: float, box: Box, network: Network, distance: int | None = None
) -> float:
    """Seconds of one collective, nothing else on the links.

    Args:
      kind: one of KINDS.
      nbytes: all_gather, permute: what one device gives; reduce_scatter, all_reduce, all_to_all:
        what one device holds, all parts together.
      box: the devices that talk.
      network: their links.
      distance: as in `Collective`; None: the receivers are neighbours, or as far as any.

    Raises:
      ScheduleError: for an unknown kind.
    """
    devices = box.devices
    if kind not in KINDS:
        raise ScheduleError(
            f'collective "{kind}" has no cost', fix=f"use one of {', '.join(KINDS)}"
        )
    if devices == 1:
        return 0.0
    start = network.hop * (box.hops if network.kind == "torus" else 1)
    if kind == "permute" and distance is not None and network.kind == "torus":
        hops, messages = shift(distance, box)
        return hops * network.hop + messages * nbytes / network.link
    if kind == "permute":
        return start + nbytes / network.link
    others = devices - 1
    if kind == "all_to_all":
        return start + _exchange(nbytes, box, network)
    links = box.links if network.kind == "torus" else 1
    each = nbytes if kind == "all_gather" else nbytes / devices
    once = start + each * others / (links * network.link)
    return 2 * once if kind == "all_reduce" else once


def shift(distance: int, box: Box) -> tuple[int, int]:
    """Hops of the farthest message, and messages through the busiest link one way, of a permute.

    Every device of the box sends to the one at a distance. They are numbered along the last dim
    first; carries to the dim before are left out. All distances together load a ring's links twice
    as an all_to_all does, as each uses one direction mostly: two at a time that are opposite fill
    both.
    """
    hops, busiest = 0, 0
    for extent, closed in reversed(list(zip(box.extents, box.closed, strict=True))):
        distance, along = divmod(distance, extent)
        back = extent - along
        hops += min(along, back) if closed else max(along, back) if along else 0
        busiest = max(busiest, min(along, back))
    return hops, busiest


def _exchange(nbytes: float, box: Box, network: Network) -> float:
    """Of a torus: half of the bytes of half of the devices go through the narrowest cut."""
    if network.kind != "torus":
        return nbytes * (box.devices - 1) / (box.devices * network.link)
    pairs = [(e, c) for e, c in zip(box.extents, box.closed, strict=True) if e > 1]
    return max(nbytes * e / (4 * _links(e, c) * network.link) for e, c in pairs)


def _links(extent: int, closed: bool) -> int:
    return 0 if extent == 1 else 2 if closed else 1


def joined(boxes: Sequence[Box]) -> Box:
    """Several mesh axes as one."""
    extents = tuple(e for box in boxes for e in box.extents)
    return Box(extents, tuple(c for box in boxes for c in box.closed))
