"""Compilers for chips that are not here: programs as jobs, and the process that compiles them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Job:
    """One program to compile.

    Attributes:
      name: for the result.
      case: "module:function"; called with the arguments it gives a function and its shapes.
      arguments: anything JSON can hold.
    """

    name: str
    case: str
    arguments: dict[str, Any] = field(default_factory=dict)


def outcomes(
    module: str, arguments: Sequence[str], jobs: Sequence[Job], environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """What a compiler says of each job, as it comes.

    A job that the process dies of has its last words as the error; the next one gets a new process.

    Args:
      module: run by this Python; reads the jobs as JSON from its input and answers each with a
        line of JSON that starts with "{" and has the job's name.
      arguments: of its command line.
      jobs: in order.
      environment: its environment variables, all of them.
    """
    left = list(jobs)
    while left:
        done = 0
        for found in _run([sys.executable, "-m", module, *arguments], left, environment):
            done += 1
            yield found
        left = left[done:]


def _run(
    command: list[str], jobs: list[Job], environment: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """What one process says, until it has done all or died."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True,
            env=environment,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        done = 0
        try:
            process.stdin.write(json.dumps([(j.name, j.case, j.arguments) for j in jobs]))
            process.stdin.close()
            for line in process.stdout:
                if line.startswith("{"):
                    done += 1
                    yield json.loads(line)
            process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        if done < len(jobs):
            complaints.seek(0)
            reason = f"the compiler aborted: {_last(complaints.read())}"
            yield {"name": jobs[done].name, "error": reason}


def _last(text: str) -> str:
    """The line of a fatal error, or the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    fatal = [line.partition("] ")[2] for line in lines if line.startswith("F")]
    return (fatal or lines or ["no reason given"])[-1][:200]
