"""One grouped product as the kernel model sees it: its sizes, FLOPs, bytes and tile visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

DIRECTIONS = ("fwd", "dlhs", "drhs")
"""The product itself, the gradient of its rows, and the gradient of its weights."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A grouped product [rows, k] x [groups, k, n] -> [rows, n], or one of its gradients.

    Attributes:
      direction: "fwd"; "dlhs", [rows, n] x [groups, k, n] -> [rows, k]; "drhs",
        [rows, k] x [rows, n] -> [groups, k, n].
      rows: rows of all groups together.
      k: width of the rows going in, in every direction.
      n: width of the rows coming out of "fwd".
      groups: weight matrices.
      active: groups that have rows; None: as many as can have one.
      itemsize: bytes of an element.
    """

    direction: str
    rows: int
    k: int
    n: int
    groups: int
    active: int | None = None
    itemsize: int = 2

    @property
    def dtype(self) -> str:
        """The dtype of the elements, by their size."""
        return "bf16" if self.itemsize == 2 else "f32"

    @property
    def used(self) -> int:
        """Groups that have rows."""
        return min(self.groups, self.rows) if self.active is None else self.active

    @property
    def contracted(self) -> int:
        """The width summed over, "fwd" and "dlhs"."""
        return self.n if self.direction == "dlhs" else self.k

    @property
    def width(self) -> int:
        """The width of the rows that come out, "fwd" and "dlhs"."""
        return self.k if self.direction == "dlhs" else self.n

    @property
    def flops(self) -> float:
        """Multiplications and additions that are needed."""
        return 2.0 * self.rows * self.k * self.n

    @property
    def bytes(self) -> float:
        """Bytes of the operands that are needed and of the result, each counted once."""
        rows = self.rows * (self.k + self.n)
        weights = (self.groups if self.direction == "drhs" else self.used) * self.k * self.n
        return float(self.itemsize) * (rows + weights)

    def visits(self, tile: Any) -> Any:
        """Row tiles that are worked on: one that holds rows of two groups is worked on twice.

        Boundaries between groups are taken to fall anywhere in a tile; this is
        rows/tile + groups - 1, the bound of MegaBlocks' scheme (arXiv:2211.15841).
        """
        return np.ceil(self.rows / np.asarray(tile)) + max(self.used - 1, 0)
