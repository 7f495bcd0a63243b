"""The checkpoints of our own runs, as `vmoe.checkpoint` writes them, read without their config."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vmoe.checkpoint import MANIFEST, TREE, Checkpoints, damage
from vmoe.errors import UserError
from vmoe.weights.leaf import (
    MAX_GROWTH,
    MAX_SMALL,
    Leaf,
    Leaves,
    dtype_of,
    flat,
    malformed,
    shape_of,
)

FIELDS = ("step", "params", "opt_state", "key")
"""The parts of a training state, which is saved as a tuple of them."""


def checkpoint_of(path: Path) -> Path | None:
    """The folder of a checkpoint: itself, or the newest sound one of a workdir; None if it is none.

    Raises:
      UserError: for a workdir whose checkpoints are all damaged.
    """
    if (path / MANIFEST).is_file():
        return path
    checkpoints = Checkpoints(path)
    steps = checkpoints.steps()
    for step in reversed(steps):
        if damage(checkpoints.path(step)) is None:
            return checkpoints.path(step)
    if steps:
        raise UserError(f"{path} has no sound checkpoint; fix: another workdir")
    return None


def read(folder: Path) -> Leaves:
    """The arrays of a checkpoint under step, params/, opt_state/ and key, one part read at a time.

    Raises:
      UserError: if a file is missing or not as it was written, naming it.
    """
    problem = damage(folder)
    if problem is not None:
        raise UserError(f"checkpoint {folder} is damaged ({problem}); fix: an earlier one")
    declared = _declared(folder)
    part_of = cache(partial(_read_part, folder, declared))
    leaves = {
        f"{FIELDS[number]}/{path}".removesuffix("/"): Leaf(
            shape_of(info.shape, folder),
            dtype_of(str(info.dtype), folder),
            partial(_read_leaf, part_of, number, path),
        )
        for number, part in enumerate(declared)
        for path, info in flat(part).items()
    }
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if sum(leaf.nbytes for leaf in leaves.values()) > max(MAX_GROWTH * there, MAX_SMALL):
        raise malformed(folder, f"it declares arrays of more than {MAX_GROWTH} times its size")
    return leaves


def _read_leaf(part_of: Any, number: int, path: str) -> np.ndarray:
    return np.array(part_of(number)[path])


def _declared(folder: Path) -> list[Any]:
    """The shapes and dtypes of each part, as orbax has them."""
    with _checkpointer(folder) as checkpointer:
        tree = checkpointer.metadata(folder / TREE).item_metadata.tree
    if not isinstance(tree, (list, tuple)) or len(tree) != len(FIELDS):
        raise UserError(
            f"checkpoint {folder} does not hold {', '.join(FIELDS)}; "
            "fix: use the version of vmoe that wrote it"
        )
    return list(tree)


def _read_part(folder: Path, declared: list[Any], number: int) -> dict[str, np.ndarray]:
    """One part as NumPy arrays, on whatever devices it was written; the others are not read."""
    import orbax.checkpoint as ocp

    wanted = [
        jax.tree.map(lambda _, i=i: ... if i != number else ocp.RestoreArgs(np.ndarray), part)
        for i, part in enumerate(declared)
    ]
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), declared)
    with _checkpointer(folder) as checkpointer:
        restored = checkpointer.restore(
            folder / TREE, args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments)
        )
    return flat(restored[number])


@contextlib.contextmanager
def _checkpointer(folder: Path) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            yield checkpointer
    except Exception as error:  # orbax and tensorstore raise what their parsers do
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise malformed(folder / TREE, f"orbax cannot read it ({reason})") from None
