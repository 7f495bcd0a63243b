"""Has the step compiled in a process of its own, which libtpu is on the path of."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from moegen import plan
from vmoe.errors import RunError
from vmoe.plan.asked import Request

WORKER = "vmoe.plan.worker"


def missing() -> str:
    """Why nothing can be compiled here; empty if it can."""
    return "" if plan.libtpu_folder() is not None else f"{plan.MISSING}; fix: {plan.FIX}"


def compile_step(given: Request, note: Callable[[str], None]) -> dict[str, Any]:
    """What the worker found: "compiled" or "refused", "seconds" by phase, "process_bytes".

    Args:
      given: the flags, read before without an error.
      note: is told of every phase, and twice a minute that it goes on.

    Raises:
      RunError: if the process dies.
    """
    folder = plan.libtpu_folder()
    assert folder is not None, "asked `missing` before"
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER], text=True, env=plan.environment(folder),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(given)))
            process.stdin.close()
            for line in process.stdout:
                found = json.loads(line)
                if "phase" not in found:
                    return found
                note(f"{found['phase']}, {found['after']:.0f} s")
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        complaints.seek(0)
        lines = [line.strip() for line in complaints.read().splitlines() if line.strip()]
    raise RunError(
        f"the compiler's process ended with {code}: {(lines or ['nothing said'])[-1][:300]}"
    )
