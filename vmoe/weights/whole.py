"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vmoe.errors import UserError

UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def written_whole(*files: Path, replace: bool = False) -> Iterator[list[Path]]:
    """Gives a temporary name for each file, and renames them in order once all are written.

    Their folder has to be there.

    Raises:
      UserError: if one cannot be written, or is there already and is not to be replaced; nothing is
        left behind then.
    """
    unfinished = [file.with_name(f"{UNFINISHED}{file.name}") for file in files]
    try:
        for file in files:
            if file.exists() and not replace:
                raise UserError(f"{file} is there already; fix: another name, or remove it first")
        yield unfinished
        for temporary, file in zip(unfinished, files, strict=True):
            _sync(temporary)
            temporary.replace(file)
    except OSError as error:
        raise UserError(
            f"{files[-1]} cannot be written: {error.strerror or error}; fix: another path"
        ) from None
    finally:
        for temporary in unfinished:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _sync(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
