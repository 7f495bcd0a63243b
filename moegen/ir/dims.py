"""The table of dim sizes that type rules read and extend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moegen.errors import DimError, ShapeError, did_you_mean


class Dims:
    """Dim names with their sizes; a name keeps its size for the whole program."""

    def __init__(self, sizes: Mapping[str, int] | None = None):
        self._sizes: dict[str, int] = dict(sizes or {})

    def __getitem__(self, name: str) -> int:
        if name not in self._sizes:
            raise DimError(
                f'no dim "{name}"{did_you_mean(name, self._sizes)}',
                fix=f"use one of {', '.join(self._sizes)}",
            )
        return self._sizes[name]

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def define(self, name: str, size: int) -> None:
        """Adds a dim, or checks that it has this size already."""
        if size < 0:
            raise ShapeError(f"dim {name} has size {size}", fix="sizes are 0 or more")
        if self._sizes.setdefault(name, size) != size:
            raise ShapeError(
                f"dim {name} has size {self._sizes[name]} already, now {size}",
                fix="give the new dim another name",
            )

    def shape(self, dims: Iterable[str]) -> tuple[int, ...]:
        """Returns the sizes of these dims, in order."""
        return tuple(self[d] for d in dims)

    def items(self) -> tuple[tuple[str, int], ...]:
        """Returns (name, size) pairs in the order of definition."""
        return tuple(self._sizes.items())

    def as_dict(self) -> dict[str, int]:
        """Returns a copy as a plain dict."""
        return dict(self._sizes)
