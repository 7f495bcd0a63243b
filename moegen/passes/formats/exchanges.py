"""How sorted rows travel between the devices that share the experts: two ways, one meaning.

* blocks: each device sends each other one a block as long as the worst case, by `all_to_all`, and
  what arrives is put in the order of experts by a gather.
* ragged: a device's rows, in the order of experts, go straight to their places in the lists of the
  devices that hold the experts, and no more of them than there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from moegen.ir.builder import Builder
from moegen.ir.placement import Axes
from moegen.ir.program import Value
from moegen.ops.parts import PARTS, SENT
from moegen.passes.formats.numbered import NumberedChoices


class Exchange(Protocol):
    """The rows of experts that are on other devices, and the way to them and back."""

    @property
    def sizes(self) -> Value:
        """Rows of each expert, i32[GroupParts, E]."""

    def to_experts(self, b: Builder, rows: Value, hint: str) -> Value:
        """Rows [Sent, ...] of tokens as rows [N, ...] of experts."""

    def to_tokens(self, b: Builder, rows: Value, hint: str) -> Value:
        """Rows [N, ...] of experts as rows [Sent, ...] of tokens."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Who shares the experts.

    Attributes:
      axes: the mesh axes of experts.
      devices: how many devices these span.
      parts: how many devices have groups of their own.
      block: an expert's rows start at a multiple of this.
    """

    axes: Axes
    devices: int
    parts: int
    block: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """Equal blocks: rows arrive by device; `take` and `back` order them by expert."""

    sizes: Value
    take: Value
    back: Value
    shared: Shared

    def to_experts(self, b: Builder, rows: Value, hint: str) -> Value:
        """Swapped, then put in the order of experts."""
        return b.one("take_rows", self.swapped(b, rows, hint), self.take, hint=hint)

    def to_tokens(self, b: Builder, rows: Value, hint: str) -> Value:
        """Put in the order of devices, then swapped."""
        return self.swapped(b, b.one("take_rows", rows, self.back, hint=hint), hint)

    def swapped(self, b: Builder, rows: Value, hint: str) -> Value:
        """Every device's block for each other one."""
        axes, devices = self.shared.axes, self.shared.devices
        return b.one("swap_parts", rows, axes=axes, devices=devices, hint=hint)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows that go straight to their places; `counts` are those of all devices that share."""

    sizes: Value
    counts: Value
    shared: Shared

    def to_experts(self, b: Builder, rows: Value, hint: str) -> Value:
        """Sent."""
        return self.sent(b, "send_rows", rows, hint)

    def to_tokens(self, b: Builder, rows: Value, hint: str) -> Value:
        """Returned."""
        return self.sent(b, "return_rows", rows, hint)

    def sent(self, b: Builder, name: str, rows: Value, hint: str) -> Value:
        """The move of this name."""
        s = self.shared
        attrs = {"axes": s.axes, "devices": s.devices, "block": s.block}
        return b.one(name, rows, self.counts, hint=hint, **attrs)


Number = Callable[[Builder, Value, Value, Value, Shared], tuple[NumberedChoices, Exchange]]
"""Weights, experts and queue positions in; the route in numbers and the exchange out."""


def by_blocks(
    b: Builder, weight: Value, expert: Value, position: Value, shared: Shared
) -> tuple[NumberedChoices, Exchange]:
    """Numbers rows by the device they go to, and plans the order in which they arrive."""
    axes, devices, block = shared.axes, shared.devices, shared.block
    slot, counts = b.emit(
        "pair_numbers",
        expert,
        position,
        devices=devices,
        parts=shared.parts,
        hints=("slot", "counts"),
    )
    arrived = b.one("swap_parts", counts, axes=axes, devices=devices, hint="arrived")
    take, back, sizes = b.emit(
        "regroup", arrived, axes=axes, devices=devices, block=block, hints=("take", "back", "sizes")
    )
    return _numbered(b, weight, slot, shared), Blocks(sizes, take, back, shared)


def by_counts(
    b: Builder, weight: Value, expert: Value, position: Value, shared: Shared
) -> tuple[NumberedChoices, Exchange]:
    """Numbers rows by expert, and tells every device how many the others have."""
    axes, devices, block = shared.axes, shared.devices, shared.block
    slot, own = b.emit(
        "row_numbers",
        expert,
        position,
        block=1,
        parts=shared.parts,
        dim=SENT,
        hints=("slot", "own_counts"),
    )
    counts = b.one("all_gather", own, axes=axes, over=PARTS, hint="counts")
    sizes = b.one("sent_sizes", counts, axes=axes, devices=devices, block=block, hint="sizes")
    return _numbered(b, weight, slot, shared), Ragged(sizes, counts, shared)


def _numbered(b: Builder, weight: Value, slot: Value, shared: Shared) -> NumberedChoices:
    source = b.one("invert_slots", slot, dims=(SENT,), hint="source")
    return NumberedChoices(weight, slot, source, b.dims[SENT] // shared.parts)


EXCHANGES: dict[str, Number] = {"blocks": by_blocks, "ragged": by_counts}
