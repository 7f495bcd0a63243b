"""What a layer keeps for its backward, in bytes, for each choice of `Schedule(save=...)`."""

from __future__ import annotations

from collections.abc import Sequence

from moegen.dsl.trace import Slot
from moegen.ir.program import Program, Value
from moegen.ir.types import value_bytes
from moegen.passes.canonicalize import canonicalize
from moegen.passes.choose_format import choose_format
from moegen.passes.layout import Layout
from moegen.passes.partition import partition
from moegen.passes.reassociate import reassociate
from moegen.passes.rematerialize import SAVES, rematerialize
from moegen.passes.shard import shard

_LISTED = 12
"""Values that get a line; the rest are summed."""


def saved_bytes(program: Program, slots: Sequence[Slot]) -> dict[Value, int]:
    """Bytes of each value that the forward hands to the backward, the layer's input included.

    Parameters are left out: they are there anyway.

    Args:
      program: joint, with a chosen format.
      slots: where the program's inputs come from.
    """
    inputs = zip(program.inputs, slots, strict=True)
    parameters = {v for v, slot in inputs if slot.role == "param"}
    kept = [v for v in partition(program).residuals if v not in parameters]
    return {v: value_bytes(v.type, program.sizes) for v in kept}


def explain_saved(
    joint: Program,
    slots: Sequence[Slot],
    storage: tuple[str, int, str],
    chosen: str,
    layout: Layout | None = None,
) -> str:
    """A table of what each choice keeps.

    Args:
      joint: before any rewrite for memory, with routes.
      slots: where the program's inputs come from.
      storage: format, row block and exchange, as `choose_format` takes them.
      chosen: what the schedule asks for.
      layout: where the inputs are on a mesh; bytes are those of all devices together.
    """
    found = {}
    for save in SAVES:
        placed = shard(reassociate(joint, save), layout)
        stored = canonicalize(choose_format(placed, *storage))
        found[save] = saved_bytes(rematerialize(stored, save), slots)
    values = dict.fromkeys(v for kept in found.values() for v in kept)
    order = sorted(values, key=lambda v: -max(kept.get(v, 0) for kept in found.values()))
    heads = [f'save="{s}"' + (" <- chosen" if s == chosen else "") for s in SAVES]
    lines = [f"{'MB kept':<36}" + "".join(f"{h:>24}" for h in heads)]
    lines += [_line(f"{v}: {v.type}", [found[s].get(v) for s in SAVES]) for v in order[:_LISTED]]
    rest = [sum(found[s].get(v, 0) for v in order[_LISTED:]) for s in SAVES]
    if order[_LISTED:]:
        lines.append(_line(f"{len(order[_LISTED:])} more", rest))
    lines.append(_line("together", [sum(found[s].values()) for s in SAVES]))
    return "\n".join(lines)


def _line(name: str, sizes: Sequence[int | None]) -> str:
    texts = ["-" if size is None else f"{size / 1e6:.4f}" for size in sizes]
    return f"{name:<36}" + "".join(f"{t:>24}" for t in texts)
