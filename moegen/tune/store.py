"""Measured choices on disk: which format was fastest for a program on a device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moegen.errors import TuneError
from moegen.tune.observations import write_text

VERSION = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of measuring a layer.

    Attributes:
      program: the layer's name, for readers of the file.
      device: what JAX calls the kind of device.
      jax: the version that compiled it.
      direction: "forward" or "training".
      format: the fastest.
      milliseconds: median time of each format that was measured.
      left_out: formats that were not measured, and why.
    """

    program: str
    device: str
    jax: str
    direction: str
    format: str
    milliseconds: dict[str, float]
    left_out: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.program}, {self.direction}, {self.device}, jax {self.jax}"]
        for name, ms in sorted(self.milliseconds.items(), key=lambda item: item[1]):
            taken = "  <- fastest" if name == self.format else ""
            lines.append(f"{name:<8}{ms:>10.3f} ms{taken}")
        lines += [f"{name:<8}  left out: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def read_store(path: Path) -> dict[str, Measured]:
    """Returns the measured choices by key; {} if the file does not exist.

    Raises:
      TuneError: if the file cannot be read or is no store, with its name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, str(error)) from None
    try:
        content = json.loads(text)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, not {VERSION}")
        return {key: _entry(found) for key, found in content["choices"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _unusable(path, f"{type(error).__name__}: {error}") from None


def add_to_store(path: Path, key: str, found: Measured) -> None:
    """Adds a choice; the file is replaced at once. Of two writers at a time, the later one stays.

    Raises:
      TuneError: if the file is there but no store, or cannot be written.
    """
    choices = read_store(path) | {key: found}
    content = {"version": VERSION, "choices": {k: asdict(c) for k, c in sorted(choices.items())}}
    write_text(path, json.dumps(content, indent=1) + "\n")


def _entry(found: dict[str, Any]) -> Measured:
    """One choice; raises ValueError, TypeError or AttributeError if it is none."""
    entry = Measured(**found)
    times = {name: float(ms) for name, ms in entry.milliseconds.items()}
    if entry.format not in times:
        raise ValueError(f"format {entry.format!r} has no time")
    return entry


def _unusable(path: Path, why: str) -> TuneError:
    return TuneError(f"{path} is no store of measured choices ({why})", fix="move it away")
