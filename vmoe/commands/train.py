"""`vmoe train`: trains, or goes on training."""

from __future__ import annotations

import sys

from vmoe.commands.given import Given, quiet
from vmoe.overrides import load
from vmoe.train import train


def run(given: Given) -> int:
    """Trains in the workdir; the exit code is 128 + signal for a run that was stopped by one."""
    config = load(
        given.need("config", "--config=FILE, for example --config=demo"), given.with_workdir
    )
    quiet()
    stopped_by = train(config, sys.stdout).stopped_by
    return 128 + stopped_by if stopped_by else 0
