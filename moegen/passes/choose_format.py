"""choose_format: how routing decisions are stored, and what moving rows then means.

Three formats, one meaning:

* onehot: masks [G, S, E, C]; every move is a matrix product.
* slots: numbered buffers [E, G, C]; every move is a gather, also backwards.
* sorted: one list of rows [N] grouped by expert; experts become grouped products. Nothing
  is padded to the capacity, so it is the format of dropless routing.

After this pass no value is a route.
"""

from __future__ import annotations

from collections.abc import Callable

from moegen.errors import LoweringError
from moegen.ir.program import Program
from moegen.passes.formats.onehot import to_onehot
from moegen.passes.formats.slots import to_slots
from moegen.passes.formats.sorted import to_sorted

FORMATS: dict[str, Callable[[Program, int, str], Program]] = {
    "onehot": lambda program, block, exchange: to_onehot(program),
    "slots": lambda program, block, exchange: to_slots(program),
    "sorted": to_sorted,
}


def choose_format(
    program: Program, format: str, block: int = 1, exchange: str = "blocks"
) -> Program:
    """Rewrites every routing op into the given format.

    Args:
      program: with routes.
      format: "onehot", "slots" or "sorted".
      block: for sorted, each expert's rows start at a multiple of this.
      exchange: for sorted on a mesh, "blocks" or "ragged": how rows go to their experts.

    Raises:
      LoweringError: if the program cannot be stored that way, with the reason and the fix.
    """
    if format not in FORMATS:
        raise LoweringError(f'format "{format}" is unknown', fix=f"use one of {', '.join(FORMATS)}")
    return FORMATS[format](program, block, exchange)
