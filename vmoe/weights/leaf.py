"""What every format is read as: paths and arrays that are not read yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vmoe.errors import UserError

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64", "complex64", "complex128",
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
"""The types of numbers that a file may hold, by name."""

MAX_DIMS = 32
MAX_PATH = 1024
"""Characters of a path; without a limit, a few long names over many leaves fill the memory."""
MAX_GROWTH = 100
"""A compressed file that unpacks to more than so many times its size is refused..."""
MAX_SMALL = 2**24
"""... unless it unpacks to no more bytes than this."""


@dataclass(frozen=True)
class Leaf:
    """An array of a file.

    Attributes:
      shape, dtype: as the file declares them.
      read: reads it; a new array that may be written to.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return self.size * self.dtype.itemsize


Leaves = dict[str, Leaf]
"""The leaves of a tree by their path, such as "Encoder/encoderblock_0/Mlp/Dense_0/kernel"."""


def leaf_of(array: np.ndarray) -> Leaf:
    """An array in memory as a leaf."""
    return Leaf(array.shape, array.dtype, lambda: np.array(array))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a/b": leaf} of nested dicts, lists and tuples, whose entries are named "0", "1", ...

    None is an empty tree, as it is to JAX.
    """
    if isinstance(tree, (list, tuple)):
        names = getattr(tree, "_fields", None) or map(str, range(len(tree)))
        tree = dict(zip(names, tree, strict=True))
    if not isinstance(tree, Mapping):
        return {} if tree is None else {prefix.removesuffix("/"): tree}
    found: dict[str, Any] = {}
    for name, branch in tree.items():
        found |= flat(branch, f"{prefix}{name}/")
    return found


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of {"a/b": leaf}."""
    root: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return root


def dtype_of(name: object, file: Path) -> np.dtype[Any]:
    """The dtype of a name that was read from a file.

    Raises:
      UserError: if it is none of DTYPES.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise malformed(file, f"dtype {str(name)[:40]!r} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def shape_of(sizes: object, file: Path) -> tuple[int, ...]:
    """A shape that was read from a file.

    Raises:
      UserError: if it is no list of at most MAX_DIMS sizes, or no machine could hold it.
    """
    if not isinstance(sizes, (list, tuple)) or not all(type(n) is int and n >= 0 for n in sizes):
        raise malformed(file, f"{str(sizes)[:80]} is no shape")
    if len(sizes) > MAX_DIMS or math.prod(max(n, 1) for n in sizes) >= 2**58:
        raise malformed(file, f"the shape {str(sizes)[:80]} is too large")
    return tuple(sizes)


def check_paths(paths: Iterable[str], file: Path) -> None:
    """Refuses paths that are one thing as text and another as a tree.

    Raises:
      UserError: for an empty name, for "." and "..", for a leaf that is a branch, too, and for a
        path of more than MAX_PATH characters.
    """
    known = set(paths)
    for path in known:
        if len(path) > MAX_PATH:
            raise malformed(file, f"the path {path[:40]!r}... has {len(path)} characters")
        names = path.split("/")
        if not {"", ".", ".."}.isdisjoint(names):
            raise malformed(file, f"{path[:80]!r} is no path of names")
        if any("/".join(names[:i]) in known for i in range(1, len(names))):
            raise malformed(file, f"{path[:80]!r} goes through another array")


def malformed(file: Path, what: str) -> UserError:
    """The error of a file that is not what its format says."""
    return UserError(f"{file} is malformed: {what}; fix: copy or download it again")


def unreadable(file: Path, error: OSError) -> UserError:
    """The error of a file that the system does not give."""
    return UserError(f"{file} cannot be read: {error.strerror or error}; fix: another path")
