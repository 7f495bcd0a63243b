"""`vmoe upcycle`: a dense checkpoint made sparse, as a run to be trained or as a weights file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vmoe.commands.given import Given, quiet
from vmoe.new_run import write_run, write_weights
from vmoe.overrides import load
from vmoe.weights.files import WRITERS


def run(given: Given) -> int:
    """Writes --out: a workdir, or with --image=SIZE a file of one of the formats.

    With a router whose weights sum to one, such as mixtral's, and no dropped token, the first
    logits are the dense model's. Source: arXiv:2212.05055.
    """
    dense = given.need("from", "--from=DENSE, a checkpoint or the workdir of a dense run")
    name = given.need("config", "--config=FILE of the sparse run, for example upcycle_digits")
    config = load(name, given.overrides)
    init = replace(config.init_from, path=dense, upcycle=True)
    out, shape = Path(given.flags.get("out", config.workdir)), given.image_shape()
    quiet()
    if out.suffix in WRITERS:
        if shape is None:
            given.need("image", "--image=224, the height and width of the images, in pixels")
        else:
            print(write_weights(out, config, init, shape))
            print(f"wrote {out}")
    else:
        print(write_run(replace(config, workdir=str(out)), init, shape))
        print(f"wrote {out}; vmoe train --config={name} --workdir={out} trains it")
    return 0
