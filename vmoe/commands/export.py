"""`vmoe export`: a trained model as one file that jax alone can load and call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax

from vmoe.commands.choices import choices_of
from vmoe.commands.given import Given, quiet
from vmoe.errors import UserError
from vmoe.use.export import SHARES, exported
from vmoe.use.files import write_bytes
from vmoe.use.trained import load_trained


def run(given: Given) -> int:
    """Writes the file; says what it takes and gives."""
    given, argument = _at_run_time(given)
    workdir = given.need("workdir", "--workdir=DIR of a run")
    out = Path(given.need("out", "--out=FILE, for example --out=model.jax"))
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: {out.parent} is no folder; fix: make it first")
    choices = choices_of(given)
    platforms = given.flags.get("platforms")
    quiet()
    trained = load_trained(workdir, given.overrides)
    wanted = tuple(platforms.split(",")) if platforms else (jax.default_backend(),)
    content = exported(trained, choices, wanted, argument)
    write_bytes(out, content)
    classes, shape = trained.config.model.num_classes, ", ".join(map(str, trained.image_shape))
    fixed, second = str(choices), ""
    if argument is not None:
        fixed = str(replace(choices, **{argument: None}))
        second = f" and {argument} f32[]"
    print(f"{out}: {len(content) / 1e6:.1f} MB for {', '.join(wanted)}, {fixed}")
    print(f"takes u8[b, {shape}]{second}, gives probabilities f32[b, {classes}], for any b")
    return 0


def _at_run_time(given: Given) -> tuple[Given, str | None]:
    """The flag whose value is "input", if any, and what was given with a number in its place."""
    inputs = [name for name in SHARES if given.flags.get(name) == "input"]
    flags = given.flags | dict.fromkeys(inputs, "1")
    return replace(given, flags=flags), inputs[0] if inputs else None
