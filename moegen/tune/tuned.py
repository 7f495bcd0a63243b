"""What select_kernels asks before its heuristics: the user's table of tiles, then ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moegen.ir.program import Op
from moegen.tune.product import product_of
from moegen.tune.search import device_name
from moegen.tune.target import Target
from moegen.tune.tiles import Tiles, Tuned, read_tiles, shipped


@dataclass(frozen=True)
class TunedTiles:
    """Tables in the order they are asked.

    Attributes:
      tables: the user's own first.
      notes: fills with a line for every product that was looked for.
    """

    tables: tuple[Tiles, ...]
    notes: list[str] = field(default_factory=list)

    def find(self, op: Op, sizes: Mapping[str, int], target: Target) -> Tuned | None:
        """The choice for a product; None if no table has one that holds here."""
        product = product_of(op, sizes)
        if product is None or target.platform == "gpu":
            return None
        for table in self.tables:
            tuned, note = table.find(product, target, device_name())
            if tuned:
                self._note(f"{tuned}, by {table.name}")
                return tuned
            if note:
                self._note(f"{product.key}: {note}")
        return None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def tables(path: str | None) -> TunedTiles:
    """The tables for a schedule: the file it names, and the one that comes with moegen.

    Raises:
      TuneError: if the file is damaged.
    """
    own = (read_tiles(Path(path)),) if path else ()
    return TunedTiles((*own, shipped()))
