"""`vmoe convert SRC DST`: a checkpoint in another format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vmoe.commands.given import Given, quiet
from vmoe.commands.inspect import size
from vmoe.errors import UserError
from vmoe.init_config import InitFromConfig
from vmoe.initialize.layouts import in_names_of
from vmoe.new_run import write_run
from vmoe.overrides import load
from vmoe.weights import files


def run(given: Given) -> int:
    """Copies every array, or with --part=PATH those under it, to the format of DST's suffix.

    With --names=augreg or vmoe each gets the name that it has there. With --config=FILE, DST
    becomes the workdir of a run at step 0 with these weights.
    """
    quiet()
    source, target = given.arguments
    if "config" in given.flags:
        return _to_run(source, target, given)
    found = files.read(source)
    leaves = found.leaves
    if "part" in given.flags:
        prefix = given.flags["part"].strip("/") + "/"
        leaves = files.part(leaves, prefix)
        if not leaves:
            tops = sorted({path.partition("/")[0] for path in found.leaves})
            raise UserError(
                f"{found.path} has nothing under {prefix}; fix: --part= one of {', '.join(tops)}"
            )
    if "names" in given.flags:
        leaves = in_names_of(given.flags["names"], leaves)
    files.write(target, leaves)
    nbytes = sum(leaf.nbytes for leaf in leaves.values())
    print(f"wrote {Path(target)}: {len(leaves)} arrays, {size(nbytes)}, from {found.format}")
    return 0


def _to_run(source: str, target: str, given: Given) -> int:
    """The config's own init_from is for its training; here every weight is taken."""
    config = replace(load(given.flags["config"], given.overrides), workdir=target)
    print(write_run(config, InitFromConfig(path=source), given.image_shape()))
    print(f"wrote {target}; vmoe evaluate --workdir={target} evaluates it")
    return 0
