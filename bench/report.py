"""Prints a suite's result as a table and writes it as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jaxlib

from bench.timing import Timing
from moegen.tune.whole import write_text


@dataclass(frozen=True)
class Row(Timing):
    """One line of a table: a timing, and what compiling the function showed.

    Attributes:
      compile_seconds: of tracing, lowering and compiling.
      temporary_mb: memory beside arguments and results, in 1e6 bytes; None where not known.
      note: what else there is to say.
    """

    compile_seconds: float
    temporary_mb: float | None
    note: str = ""


def machine() -> dict[str, object]:
    """What a figure depends on besides the code: versions, device and usable cores."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cores": _cores(),
    }


def git_state() -> str:
    """The commit that is checked out, with "-dirty" if files differ from it; "" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def table(title: str, rows: Sequence[Row]) -> str:
    """A text table: times in milliseconds, ratios to the first row, compile time and memory."""
    head = f"  {'':<18}{'ms':>9}{'ratio':>7}   {'quartiles':<12}{'compile s':>10}{'temp MB':>9}"
    lines = [title, head]
    for row in rows:
        quartiles = f"{row.ratio_low:.2f}..{row.ratio_high:.2f}"
        memory = "" if row.temporary_mb is None else f"{row.temporary_mb:.0f}"
        lines.append(
            f"  {row.name:<18}{row.median_ms:>9.2f}{row.ratio:>7.2f}   {quartiles:<12}"
            f"{row.compile_seconds:>10.1f}{memory:>9}  {row.note}".rstrip()
        )
    return "\n".join(lines)


def check_folder(flag: str, path: Path | None) -> None:
    """Raise ValueError if the flag's file could not be written there; None is no file at all."""
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"--{flag}: {path.parent} is no folder; fix: make it first")


def write_json(
    path: Path, suite: str, settings: Mapping[str, object], results: Mapping[str, Sequence[Row]]
) -> None:
    """Write the result whole or not at all; raises OSError if that is not possible."""
    content = {
        "suite": suite,
        "machine": machine(),
        "git": git_state(),
        "settings": dict(settings),
        "results": {name: [asdict(row) for row in rows] for name, rows in results.items()},
    }
    write_text(path, json.dumps(content, indent=2) + "\n")


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may have fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
