"""Measured times of grouped products: the table the kernel model is fitted to and judged on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moegen.errors import TuneError
from moegen.tune import whole
from moegen.tune.problem import Problem

SIZES = ("rows", "k", "n", "groups")
COLUMNS = ("target", "kernel", "direction", *SIZES, "active", "output", "tile", "ms")


@dataclass(frozen=True, slots=True)
class Observation:
    """One kernel's best time on one problem.

    Attributes:
      target: a name of `moegen.tune.target.TARGETS`.
      kernel: the kernel's name.
      problem: what it computed.
      output: the dtype asked for, "same" for that of the operands.
      tile: the best tile found by trying all; empty if the kernel picks its own.
      seconds: median of the repetitions.
    """

    target: str
    kernel: str
    problem: Problem
    output: str
    tile: tuple[float, ...]
    seconds: float

    @property
    def case(self) -> tuple[Problem, str]:
        """What competing kernels have in common."""
        return self.problem, self.output


def held_out(p: Problem) -> bool:
    """Whether a problem is kept from the fit: a fixed third, by a checksum of its shape.

    All directions, kernels and devices of a shape are on the same side.
    """
    return zlib.crc32(f"{p.rows} {p.k} {p.n} {p.groups}".encode()) % 3 == 0


def write_table(path: Path, found: Iterable[Observation], source: str) -> None:
    """Writes a table as tab-separated text; the file is replaced at once."""
    lines = [f"# {line}" for line in source.splitlines()] + ["\t".join(COLUMNS)]
    lines += ["\t".join(_fields(o)) for o in found]
    write_text(path, "\n".join(lines) + "\n")


def read_table(path: Path) -> list[Observation]:
    """Reads a table.

    Raises:
      TuneError: if the file is missing or a line is not an observation, naming both.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TuneError(f"{path}: {error.strerror}", fix="name a table that exists") from None
    lines = [(n, t) for n, t in enumerate(text.splitlines(), 1) if t and not t.startswith("#")]
    return [_parse(path, n, t) for n, t in lines[1:]]


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it.

    Raises:
      TuneError: if it cannot be written, with the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_text(path, text)
    except OSError as error:
        raise TuneError(
            f"{path} cannot be written: {error.strerror}", fix="make its directory writable"
        ) from None


def _fields(o: Observation) -> list[str]:
    p = o.problem
    sizes = (p.rows, p.k, p.n, p.groups, p.active or "-")
    tile = "/".join(f"{t:g}" for t in o.tile) or "-"
    return [
        o.target,
        o.kernel,
        p.direction,
        *map(str, sizes),
        o.output,
        tile,
        f"{o.seconds * 1e3:g}",
    ]


def _parse(path: Path, number: int, line: str) -> Observation:
    try:
        f = dict(zip(COLUMNS, line.split("\t"), strict=True))
        rows, k, n, groups = (int(f[c]) for c in SIZES)
        active = None if f["active"] == "-" else int(f["active"])
        tile = () if f["tile"] == "-" else tuple(map(float, f["tile"].split("/")))
        problem = Problem(f["direction"], rows, k, n, groups, active)
        seconds = float(f["ms"]) * 1e-3
    except ValueError as error:
        raise TuneError(
            f"{path}, line {number}: not an observation ({error})",
            fix=f"its columns are {', '.join(COLUMNS)}, separated by tabs",
        ) from None
    return Observation(f["target"], f["kernel"], problem, f["output"], tile, seconds)
