"""The values a random function has so far, and which of them suit an instruction.

Each value carries an interval that its elements lie in, so that instructions are well conditioned
by choice: no logarithm of nearly 0, no quotient by it, and nothing above `LIMIT`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT = 40.0
"""No element's magnitude is more."""
CLEAR = 0.2
"""How far from 0 a divisor, or the operand of a logarithm or a root, stays."""
MOST_ELEMENTS, MOST_DIMS = 600, 3


@dataclass(frozen=True)
class Entry:
    """A traced value whose elements lie in low..high (bools: 0..1)."""

    value: Any
    low: float = 0.0
    high: float = 1.0

    @property
    def dims(self) -> tuple[str, ...]:
        """All dims, those that ride along included."""
        return self.value.type.dims

    @property
    def is_float(self) -> bool:
        return self.value.dtype == "f32"

    @property
    def is_bool(self) -> bool:
        return self.value.dtype == "bool"

    @property
    def is_int(self) -> bool:
        return self.value.dtype == "i32"


@dataclass
class Pool:
    """Values in the order they were made.

    Attributes:
      sizes: of all dims.
      hidden: dims that ride along.
      lead: the dim of tokens or rows.
      key: the random key, or None.
    """

    sizes: dict[str, int]
    hidden: tuple[str, ...]
    lead: str
    key: Any = None
    entries: list[Entry] = field(default_factory=list)

    def own(self, entry: Entry) -> tuple[str, ...]:
        """The dims that the author sees."""
        return tuple(d for d in entry.dims if d not in self.hidden)

    def pick(self, number: int, *tests: Callable[[Entry], bool]) -> Entry | None:
        """One of the entries that pass the tests, counted from the newest, if there is any."""
        found = [e for e in reversed(self.entries) if all(test(e) for test in tests)]
        return found[number % len(found)] if found else None

    def fits(self, *all_dims: Sequence[str]) -> bool:
        """Whether a value with all of these dims stays small."""
        dims = {d for dims in all_dims for d in dims}
        few = len(dims - set(self.hidden)) <= MOST_DIMS
        return few and math.prod(self.sizes[d] for d in dims) <= MOST_ELEMENTS

    def add(self, value: Any, low: float = 0.0, high: float = 1.0) -> Entry:
        self.entries.append(Entry(value, min(low, high), max(low, high)))
        return self.entries[-1]


def bounded(low: float, high: float) -> bool:
    return -LIMIT <= low <= high <= LIMIT


def product_span(a: Entry, b: Entry) -> tuple[float, float]:
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return min(ends), max(ends)


def quotient_span(a: Entry, b: Entry) -> tuple[float, float] | None:
    """None where the divisor may come near 0."""
    if b.low < CLEAR and b.high > -CLEAR:
        return None
    return product_span(a, Entry(None, 1 / b.high, 1 / b.low))


def scaled_span(a: Entry, n: int) -> tuple[float, float]:
    """Of a sum of 1 to n such elements."""
    return min(a.low, n * a.low), max(a.high, n * a.high)
