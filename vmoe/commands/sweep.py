"""`vmoe sweep`: accuracy, multiply-adds and time against capacity, priority and budget."""

from __future__ import annotations

import json
import os
import sys
from functools import partial

import jax

from vmoe.commands.choices import choices_of, numbers
from vmoe.commands.given import Given, quiet
from vmoe.errors import UserError
from vmoe.inference import Choices, chosen_model
from vmoe.use.files import make_folder, write_bytes
from vmoe.use.sweep import BUDGETS, CAPACITIES, as_json, settings, sweep
from vmoe.use.sweep_page import sweep_page, text_table
from vmoe.use.trained import Trained, images_of, load_trained


def run(given: Given) -> int:
    """Prints a table; with --out, writes sweep.json and sweep.html there."""
    base = _base(choices_of(given))
    capacities = numbers("capacities", given.flags.get("capacities"), CAPACITIES)
    budgets = numbers("budgets", given.flags.get("budgets"), BUDGETS)
    rounds = int(numbers("rounds", given.flags.get("rounds"), (5.0,))[0])
    if rounds < 1:
        raise UserError(f"--rounds={rounds} times nothing; fix: 1 or more")
    quiet()
    models = [load_trained(path, given.overrides) for path in given.arguments]
    choose = partial(settings, base=base, capacities=capacities, budgets=budgets)
    _check(models, choose)
    images, *_ = [images_of(trained)[1] for trained in models]
    folder = make_folder("out", given.flags.get("out"))
    rows = sweep(models, images, choose, rounds, lambda text: print(text, file=sys.stderr))
    told = f"{len(images)} test images, {rounds} timed rounds, {_machine()}"
    print(told)
    for line in text_table(rows):
        print(line)
    if folder is not None:
        content = {"told": told, "rows": as_json(rows)}
        write_bytes(folder / "sweep.json", (json.dumps(content, indent=1) + "\n").encode())
        write_bytes(folder / "sweep.html", sweep_page("Sweep", told, rows).encode())
        print(f"\nwritten: {folder / 'sweep.json'}, {folder / 'sweep.html'}")
    return 0


def _base(choices: Choices) -> Choices:
    swept = (choices.capacity, choices.batch_priority, choices.budget, choices.skip)
    if any(value is not None for value in swept) or choices.dropless:
        raise UserError(
            "sweep varies capacity, priority and budget itself; fix: --capacities=2,1,0.5 and "
            "--budgets=1,0.5 for which; --k and --independent may be given"
        )
    return choices


def _check(models: list[Trained], choose: partial[list[Choices]]) -> None:
    """Refuses settings that a model cannot follow, and models of different data."""
    for trained in models:
        for choices in choose(trained.config.model):
            chosen_model(trained.config.model, choices)
        first = models[0].config
        for field in ("name", "path"):
            if getattr(trained.config.data, field) != getattr(first.data, field):
                raise UserError(
                    f"{trained.name} and {models[0].name} have other data ({field}); fix: sweep "
                    "each by itself"
                )


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}"
