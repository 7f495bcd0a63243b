"""Every error a user of moegen can meet, and the source location each one points at.

An error says four things: which op, what does not match, which line of the author's
file asked for it, and what to do about it.
"""

from __future__ import annotations

import difflib
import linecache
import os
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the author's source: file path, 1-based line, enclosing function."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"

    def source(self) -> str:
        """Returns the stripped text of the line, or "" when the file cannot be read."""
        return linecache.getline(self.file, self.line).strip()


class MoegenError(Exception):
    """Base of all errors raised on purpose by moegen.

    Attributes:
      what: the mismatch in one line.
      fix: what the user can do, in one line, or None.
      op: the offending op as it would be printed, or None.
      location: the author's line, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        fix: str | None = None,
        op: str | None = None,
        location: Location | None = None,
    ):
        self.what = what
        self.fix = fix
        self.op = op
        self.location = location
        super().__init__(what)

    def located(self, op: str | None, location: Location | None) -> MoegenError:
        """Fills in the op and the author's line where they are not known yet."""
        self.op = self.op or op
        self.location = self.location or location
        return self

    def __str__(self) -> str:
        lines = [self.what]
        if self.op:
            lines.append(f"  in  {self.op}")
        if self.location:
            where = f" in {self.location.function}" if self.location.function else ""
            lines.append(f"  --> {self.location}{where}")
            if self.location.source():
                lines.append(f"   | {self.location.source()}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class DimError(MoegenError):
    """A dim name that does not exist, is reserved, or appears twice."""


class ShapeError(MoegenError):
    """Sizes or dims that do not fit the op or the declared signature."""


class DtypeError(MoegenError):
    """Element types that do not match; moegen never converts them silently."""


class TraceError(MoegenError):
    """A router or expert function that cannot be turned into a program."""


class ParseError(MoegenError):
    """Text that is not a program; the location is a line of the .moe file."""


class VerifyError(MoegenError):
    """A program that breaks a rule of the IR."""


class PlacementError(MoegenError):
    """Values whose places on a mesh do not fit an op, each other, or the mesh."""


class DerivativeError(MoegenError):
    """An op without a derivative rule on the path of a gradient."""


class LoweringError(MoegenError):
    """A pairing of program and schedule that has no lowering."""


class ScheduleError(MoegenError):
    """A Schedule field with a value that is unknown or not supported."""


class TuneError(MoegenError):
    """A file of the tuner, measured or fitted, that cannot be read or written."""


class RecompileError(MoegenError):
    """A new program was compiled where the caller had ruled that out."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ' (did you mean "x"?)' for the nearest known name, or ''."""
    by_case = {k.casefold(): k for k in sorted(known)}
    close = difflib.get_close_matches(name.casefold(), by_case, n=1)
    return f' (did you mean "{by_case[close[0]]}"?)' if close else ""
