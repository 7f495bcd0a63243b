"""`vmoe demo`: a small V-MoE on handwritten digits, trained, evaluated and shown."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from vmoe.commands.given import Given, quiet
from vmoe.demo import demo
from vmoe.overrides import load


def run(given: Given) -> int:
    """Trains in --workdir, or a new folder under runs/."""
    if not any(flag.startswith("--config.workdir") for flag in given.overrides):
        new = time.strftime("runs/demo-%Y%m%d-%H%M%S")
        given = replace(given, flags={"workdir": new} | given.flags)
    config = load("demo", given.with_workdir)
    quiet()
    return demo(config, sys.stdout)
