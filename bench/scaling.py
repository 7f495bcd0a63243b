"""Weak scaling of training steps, planned from 1 to 512 TPUs by `vmoe.plan`: nothing is timed.

Every device has as many images, experts are spread over as many devices as there are experts, all
else is data parallel. A plan is one JSON file in --folder; what is there already is not made again.
With --compile each step is compiled for the slice, by the libtpu of `make tpu`; without, all
figures are estimated.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from vmoe.plan.asked import Request, asked
from vmoe.plan.compiling import compile_step, missing
from vmoe.plan.estimate import estimate
from vmoe.plan.report import Plan, as_dict

SLICES = {
    "v5p": {
        1: "1x1x1", 2: "2x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4",
        128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
    },
    "v5e": {1: "1x1", 2: "2x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16",
            256: "16x16"},
}  # fmt: skip
"""By family and number of devices, the sizes of the torus; v5e has no more than 256."""
EXPERTS = 32
MODELS = ("V-MoE-S/32", "V-MoE-B/32", "V-MoE-B/16", "V-MoE-L/32", "V-MoE-L/16", "V-MoE-H/14",
          "V-MoE-15B")  # fmt: skip
HEAD = (
    "| model | devices | mesh | HBM, GiB | compute | HBM | exchange | step, ms | bottleneck "
    "| images/s per device |\n|---|---|---|---|---|---|---|---|---|---|"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    parser.add_argument("--folder", type=Path, required=True, help="where the plans are kept")
    parser.add_argument("--models", default=",".join(MODELS), metavar="NAME,...")
    parser.add_argument("--family", choices=tuple(SLICES), default="v5p", help="of TPUs")
    parser.add_argument("--devices", default="", metavar="N,...", help="default: all there are")
    parser.add_argument("--images", type=int, default=8, help="per device (default 8)")
    parser.add_argument("--compile", action="store_true", help="compile the steps, with libtpu")


def run(arguments: argparse.Namespace) -> int:
    """Makes the plans that are not there yet, then prints the table.

    Raises:
      ValueError: for a model, a number of devices or a folder that cannot be.
    """
    slices = SLICES[arguments.family]
    counts = [int(n) for n in arguments.devices.split(",") if n.isdecimal()] or list(slices)
    if unknown := [n for n in counts if n not in slices]:
        raise ValueError(f"--devices={unknown[0]}; fix: some of {', '.join(map(str, slices))}")
    if arguments.compile and (reason := missing()):
        raise ValueError(reason)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    for model in arguments.models.split(","):
        for devices in counts:
            found = plan_of(arguments, model, devices, f"{arguments.family}:{slices[devices]}")
            print(row(found), flush=True)
    return 0


def plan_of(arguments: argparse.Namespace, model: str, devices: int, topology: str) -> Any:
    """One plan, from its file or made now."""
    experts = min(devices, EXPERTS)
    mesh = f"data={devices // experts},expert={experts}"
    word = "compiled" if arguments.compile else "estimated"
    name = f"{model}-{topology}-{arguments.images}-{word}.json".replace("/", "_")
    file = arguments.folder / name.replace(":", "_")
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    print(f"{model} on {devices}", file=sys.stderr, flush=True)
    request = Request({"model": model, "topology": topology, "mesh": mesh,
                       "batch": str(arguments.images * devices)})  # fmt: skip
    wanted = asked(request)
    found = compile_step(request, _note) if arguments.compile else {}
    made = as_dict(Plan(wanted, estimate(wanted), found))
    _write(file, json.dumps(made, indent=1))
    return made


def row(found: Any) -> str:
    """One line of the table; times in ms."""
    times = found["seconds"]
    exchange = {axis: s for axis, s in times.items() if axis not in ("compute", "HBM")}
    held = found["hbm"]["peak"] / 2**30
    fits = "" if found["hbm"]["fits"] else ", too much"
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    each = found["batch"] / found["devices"] / found["step_seconds"]
    cells = [
        found["model"], str(found["devices"]), mesh, f"{held:.1f}{fits}",
        *(f"{1e3 * s:.1f}" for s in (times["compute"], times["HBM"], sum(exchange.values()),
                                     found["step_seconds"])),
        found["bottleneck"], f"{each:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _note(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, suffix=".tmp") as made:
        made.write(text)
    os.replace(made.name, file)
