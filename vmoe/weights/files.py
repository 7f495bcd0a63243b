"""Any checkpoint by its path: which format it has, and how that is read and written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vmoe.errors import UserError
from vmoe.weights import npz, run, safetensors, sharded, sharded_write
from vmoe.weights.leaf import Leaf, Leaves, unreadable

PARAMS = "params/"


class Format(NamedTuple):
    """A way to store arrays.

    Attributes:
      name: for people.
      find: what to read of a path, or None if it is not of this format.
      read: reads that.
    """

    name: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path], Leaves]


class Checkpoint(NamedTuple):
    """A checkpoint that was found.

    Attributes:
      path: the file, folder or prefix that is read.
      format: the name of its format.
      leaves: its arrays.
    """

    path: Path
    format: str
    leaves: Leaves


def _with_suffix(suffix: str) -> Callable[[Path], Path | None]:
    return lambda path: path if path.suffix == suffix and path.is_file() else None


AVERAGE = re.compile(r"opt_state/[^/]+/average/(.+)")
"""Weights of `vmoe.optim.AverageState`."""

FORMATS = (
    Format("numpy archive", _with_suffix(".npz"), npz.read),
    Format("safetensors", _with_suffix(".safetensors"), safetensors.read),
    Format("released V-MoE", sharded.prefix_of, sharded.read),
    Format("vmoe run", run.checkpoint_of, run.read),
)

WRITERS: dict[str, Callable[[Path, Leaves], None]] = {
    ".npz": npz.write,
    ".safetensors": safetensors.write,
    ".index": lambda path, leaves: sharded_write.write(path.with_suffix(""), leaves),
}
"""How a file with this suffix is written."""


def read(path: str | Path) -> Checkpoint:
    """The checkpoint at a path; arrays are read when they are asked for.

    Args:
      path: a .npz or .safetensors file; a released checkpoint P by P, P.index or one of its data
        files; the workdir of a run (its newest sound checkpoint) or one checkpoint of it.

    Raises:
      UserError: if there is none, or it is malformed: names the file and what is wrong.
    """
    path = Path(path)
    try:
        for form in FORMATS:
            found = form.find(path)
            if found is not None:
                return Checkpoint(found, form.name, form.read(found))
        what = "is no checkpoint" if path.exists() else "does not exist"
    except OSError as error:
        raise unreadable(path, error) from None
    raise UserError(
        f"checkpoint {path} {what}; fix: give a .npz or .safetensors file, the .index of a "
        "released checkpoint, or the workdir of a run"
    )


def write(path: str | Path, leaves: Leaves) -> None:
    """Writes arrays in the format of the path's suffix, one of WRITERS.

    Raises:
      UserError: if the suffix is another one, or the file is there or cannot be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise UserError(f"cannot tell the format of {path}; fix: end it in {', '.join(WRITERS)}")
    WRITERS[path.suffix](path, leaves)


def part(leaves: Leaves, prefix: str) -> Leaves:
    """The leaves under a path such as "params/", with the path taken off."""
    return {p.removeprefix(prefix): leaf for p, leaf in leaves.items() if p.startswith(prefix)}


def weights(leaves: Leaves) -> dict[str, Leaf]:
    """The model's weights by path.

    Of a training state the running average if it keeps one, or else what is under params/; of
    anything else everything.
    """
    averaged = {m[1]: leaf for path, leaf in leaves.items() if (m := AVERAGE.match(path))}
    return averaged or part(leaves, PARAMS) or leaves
