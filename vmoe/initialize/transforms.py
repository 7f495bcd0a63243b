"""What a rule can do to arrays between a checkpoint and a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from vmoe.errors import UserError

Transform = Callable[..., np.ndarray]
"""fn(arrays, target, *arguments): the checkpoint's arrays, and the model's fresh one."""


def keep(arrays: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
    """The array as it is."""
    return arrays[0]


def reshape(arrays: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
    """The same entries in the target's shape."""
    return arrays[0].reshape(target.shape)


def squeeze(arrays: Sequence[np.ndarray], target: np.ndarray, axis: int) -> np.ndarray:
    """Without a dim of size 1."""
    return arrays[0].squeeze(axis)


def stack(arrays: Sequence[np.ndarray], target: np.ndarray, axis: int) -> np.ndarray:
    """Several arrays as one with a new dim, in the natural order of their names: 2 before 10."""
    return np.stack(arrays, axis)


def expand_tile(
    arrays: Sequence[np.ndarray], target: np.ndarray, axis: int, count: int
) -> np.ndarray:
    """`count` copies of the array along a new dim."""
    return np.repeat(np.expand_dims(arrays[0], axis), count, axis)


def zoom(arrays: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
    """Linear interpolation to the target's shape, first and last entries of each dim kept."""
    (array,) = arrays
    factors = [new / old for new, old in zip(target.shape, array.shape, strict=True)]
    return np.asarray(ndimage.zoom(array, factors, order=1))


def resize_positions(arrays: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
    """Position embeddings [1, T, D] of a square grid of patches, zoomed to another one.

    A class token comes first where T - 1 is a square and T is none; its embedding is copied, or
    is the target's where the checkpoint has none.

    Raises:
      ValueError: if a number of tokens is no square grid.
    """
    (array,) = arrays
    if array.shape == target.shape:
        return array
    (old, old_class), (new, new_class) = (_grid(a.shape[1]) for a in (array, target))
    grid = array[0, old_class:].reshape(old, old, -1)
    zoomed = np.asarray(ndimage.zoom(grid, (new / old, new / old, 1), order=1))
    positions = zoomed.reshape(1, new * new, -1)
    if not new_class:
        return positions
    first = (array if old_class else np.asarray(target))[:, :1]
    return np.concatenate([first, positions], axis=1)


def _grid(tokens: int) -> tuple[int, bool]:
    """The side of the grid and whether a class token comes before it."""
    for side, extra in ((math.isqrt(tokens), 0), (math.isqrt(tokens - 1), 1)):
        if side * side + extra == tokens:
            return side, bool(extra)
    raise ValueError(f"{tokens} tokens are no square grid of patches")


TRANSFORMS: dict[str, Transform] = {
    "": keep,
    "reshape": reshape,
    "squeeze": squeeze,
    "stack": stack,
    "expand_tile": expand_tile,
    "zoom": zoom,
    "resize_positions": resize_positions,
}
"""By the name that a rule gives."""


def transformed(
    name: str, arrays: Sequence[np.ndarray], target: np.ndarray, arguments: Sequence[Any]
) -> np.ndarray:
    """Applies the transform of that name.

    Raises:
      UserError: if the arrays or arguments do not go with it.
    """
    try:
        return TRANSFORMS[name](arrays, target, *arguments)
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot {name} {shapes} to {list(target.shape)} with {tuple(arguments)}: {reason}; "
            "fix: another rule"
        ) from None
