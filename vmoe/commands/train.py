"""`vmoe train`: trains, or goes on training."""

from __future__ import annotations

import sys

from vmoe.commands.given import Given, quiet
from vmoe.errors import UserError
from vmoe.overrides import load
from vmoe.processes import AUTO, join, join_detected, together
from vmoe.train import train

PROCESSES = ("coordinator", "num_processes", "process_id")


def run(given: Given) -> int:
    """Trains in the workdir; the exit code is 128 + signal for a run that was stopped by one."""
    config = load(
        given.need("config", "--config=FILE, for example --config=demo"), given.with_workdir
    ).validate()
    quiet()
    _join(given.flags)
    with together():
        stopped_by = train(config, sys.stdout).stopped_by
    return 128 + stopped_by if stopped_by else 0


def _join(flags: dict[str, str]) -> None:
    """Makes this process one of several if the flags say so.

    Raises:
      UserError: for some of the flags without the others, and what `vmoe.processes.join` refuses.
    """
    there = [name for name in PROCESSES if name in flags]
    if there == ["coordinator"] and flags["coordinator"] == AUTO:
        join_detected()
    elif len(there) == len(PROCESSES):
        join(*(flags[name] for name in PROCESSES))
    elif there:
        missing = ", ".join(f"--{name}" for name in PROCESSES if name not in flags)
        raise UserError(
            f"--{there[0]} is given without {missing}; fix: all of --coordinator=HOST:PORT "
            f"--num_processes=N --process_id=I, or --coordinator={AUTO} alone on a cluster that "
            "JAX knows"
        )
