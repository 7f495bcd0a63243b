"""`vmoe upcycle`: a dense checkpoint made sparse, as a run to be trained or as a weights file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vmoe.commands.given import Given, quiet
from vmoe.errors import UserError
from vmoe.overrides import load
from vmoe.upcycle import write_weights, write_workdir
from vmoe.weights.files import WRITERS


def run(given: Given) -> int:
    """Writes --out: a workdir, or with --image=SIZE a file of one of the formats."""
    dense = given.need("from", "--from=DENSE, a checkpoint or the workdir of a dense run")
    config = load(
        given.need("config", "--config=FILE of the sparse run, for example upcycle_digits"),
        given.overrides,
    )
    out = Path(given.flags.get("out", config.workdir))
    quiet()
    if out.suffix in WRITERS:
        print(write_weights(out, config, dense, _size(given)))
        print(f"wrote {out}")
    else:
        config = replace(config, workdir=str(out))
        print(write_workdir(config, dense))
        print(f"wrote {out}; vmoe train --config={given.flags['config']} --workdir={out} trains it")
    return 0


def _size(given: Given) -> int:
    size = given.need("image", "--image=224, the height and width of the images, in pixels")
    if not size.isdecimal() or int(size) < 1:
        raise UserError(f"--image={size} is no size in pixels; fix: for example --image=224")
    return int(size)
