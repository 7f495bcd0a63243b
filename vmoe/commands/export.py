"""`vmoe export`: a trained model as one file that jax alone can load and call."""

from __future__ import annotations

from pathlib import Path

import jax

from vmoe.commands.choices import choices_of
from vmoe.commands.given import Given, quiet
from vmoe.errors import UserError
from vmoe.use.export import exported
from vmoe.use.files import write_bytes
from vmoe.use.trained import load_trained


def run(given: Given) -> int:
    """Writes the file; says what it takes and gives."""
    workdir = given.need("workdir", "--workdir=DIR of a run")
    out = Path(given.need("out", "--out=FILE, for example --out=model.jax"))
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: {out.parent} is no folder; fix: make it first")
    choices = choices_of(given)
    platforms = given.flags.get("platforms")
    quiet()
    trained = load_trained(workdir, given.overrides)
    wanted = tuple(platforms.split(",")) if platforms else (jax.default_backend(),)
    content = exported(trained, choices, wanted)
    write_bytes(out, content)
    classes, shape = trained.config.model.num_classes, ", ".join(map(str, trained.image_shape))
    print(f"{out}: {len(content) / 1e6:.1f} MB for {', '.join(wanted)}, {choices}")
    print(f"takes u8[b, {shape}], gives probabilities f32[b, {classes}], for any b")
    return 0
