"""Prints a suite's result as a table and writes it as JSON."""

import json
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import jax
import jaxlib

from bench.timing import Timing


def machine() -> dict[str, object]:
    """What a figure depends on besides the code: versions, device and usable cores."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def table(title: str, rows: Sequence[Timing]) -> str:
    """A text table: one row per function, times in milliseconds, ratios to the baseline."""
    lines = [title, f"  {'':<14}{'ms':>10}{'ratio':>8}   quartiles"]
    for row in rows:
        quartiles = f"{row.ratio_low:.2f} .. {row.ratio_high:.2f}"
        lines.append(f"  {row.name:<14}{row.median_ms:>10.3f}{row.ratio:>8.2f}   {quartiles}")
    return "\n".join(lines)


def write_json(
    path: Path, suite: str, case: Mapping[str, object], results: Mapping[str, Sequence[Timing]]
) -> None:
    """Write the result whole or not at all: to a temporary file beside `path`, then renamed.

    Raises OSError if the folder of `path` does not exist or cannot be written.
    """
    content = {
        "suite": suite,
        "machine": machine(),
        "case": dict(case),
        "results": {name: [asdict(row) for row in rows] for name, rows in results.items()},
    }
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may have fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
