"""`vmoe plan`: what a training step takes on a slice of TPUs that is not here."""

from __future__ import annotations

import json
import sys

from moegen.errors import MoegenError
from vmoe.commands.given import Given, quiet
from vmoe.errors import UserError
from vmoe.plan.asked import Asked, Request, asked
from vmoe.plan.compiling import compile_step, missing
from vmoe.plan.estimate import Estimate, estimate, others
from vmoe.plan.report import Plan, as_dict, as_text
from vmoe.use.files import write_bytes

SHOWN = 3
"""Better meshes that are shown."""


def run(given: Given) -> int:
    """Compiles the step, estimates it and other meshes, prints the plan."""
    quiet()
    request = Request(given.flags, given.overrides, given.image_shape())
    wanted = asked(request)
    try:
        made = estimate(wanted)
    except MoegenError as error:
        raise UserError(f"{error.what}; fix: {error.fix}") from None
    found = {}
    if given.flags.get("compile") != "false":
        if reason := missing():
            note(reason)
        else:
            found = compile_step(request, note)
    finished = Plan(wanted, made, found, better(wanted, made))
    print(as_text(finished), end="")
    if "output" in given.flags:
        content = json.dumps(as_dict(finished), indent=1) + "\n"
        write_bytes(given.flags["output"], content.encode())
    return 0


def better(wanted: Asked, made: Estimate) -> tuple[Estimate, ...]:
    """The best other meshes that fit and take less time, by the estimate."""
    there = wanted.topology.target.memory
    found = []
    meshes = [mesh for mesh in others(wanted) if dict(mesh) != dict(made.mesh)]
    for n, mesh in enumerate(meshes):
        if sys.stderr.isatty():
            print(f"\rmesh {n + 1} of {len(meshes)}", end="", file=sys.stderr)
        try:
            found.append(estimate(wanted.on(mesh)))
        except (MoegenError, UserError):  # the model has no equal parts for it
            continue
    if sys.stderr.isatty():
        print("\r" + " " * 24 + "\r", end="", file=sys.stderr)
    limit = made.step if made.held <= there else float("inf")
    fitting = [one for one in found if one.held <= there and one.step < limit]
    return tuple(sorted(fitting, key=lambda one: one.step)[:SHOWN])


def note(line: str) -> None:
    """Tells how far it is, beside the output."""
    print(f"vmoe plan: {line}", file=sys.stderr, flush=True)
