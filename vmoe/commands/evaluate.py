"""`vmoe evaluate`: the last checkpoint of a run, on its test images."""

from __future__ import annotations

import sys
from pathlib import Path

from vmoe.assess import OUTSIDE, chosen_sets
from vmoe.commands.choices import choices_of
from vmoe.commands.given import Given, quiet
from vmoe.demo import evaluate_checkpoint
from vmoe.overrides import with_overrides
from vmoe.workdir import read_config


def run(given: Given) -> int:
    """Prints the report of the newest sound checkpoint, and the further ones asked for."""
    sets = chosen_sets(given.flags.get("sets", ""))
    trained = read_config(Path(given.need("workdir", "--workdir=DIR of a run")))
    config = with_overrides(trained, given.with_workdir).validate()
    quiet()
    outside = given.flags.get("ood", OUTSIDE)
    evaluate_checkpoint(config, choices_of(given), sys.stdout, sets, outside)
    return 0
