"""`vmoe predict`: the classes of images, the time, and which experts saw which patches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vmoe.commands.choices import choices_of, number
from vmoe.commands.given import Given, quiet
from vmoe.data.class_names import class_name
from vmoe.errors import UserError
from vmoe.inference import chosen_model
from vmoe.use.classify import Prediction, classify
from vmoe.use.files import make_folder, read_image, write_bytes
from vmoe.use.grid import picture, text_grid
from vmoe.use.trained import Trained, load_trained

TOP = 3


def run(given: Given) -> int:
    """Prints top classes, time and experts of every image; with --out, draws them there."""
    workdir = given.need("workdir", "--workdir=DIR of a run")
    choices = choices_of(given)
    if given.flags.get("independent") != "false":
        choices = replace(choices, independent=True)
    top = int(number("top", given.flags.get("top", str(TOP))))
    if top < 1:
        raise UserError(f"--top={top} leaves no class to show; fix: 1 or more")
    quiet()
    trained = load_trained(workdir, given.overrides)
    chosen_model(trained.config.model, choices)
    images = [read_image(p, trained.image_shape, trained.config.data) for p in given.arguments]
    out = make_folder("out", given.flags.get("out"))
    print(f"step {trained.step} of {trained.name}, {choices}")
    predictions = classify(trained, images, choices)
    for path, image, prediction in zip(given.arguments, images, predictions, strict=True):
        print(f"\n{path}  {1e3 * prediction.seconds:.1f} ms")
        _show(trained, prediction, top)
        if out is not None:
            file = out / f"{Path(path).stem}.experts.svg"
            write_bytes(file, picture(trained, image, prediction, Path(path).name).encode())
            print(f"drawn in {file}")
    return 0


def _show(trained: Trained, prediction: Prediction, top: int) -> None:
    order = np.argsort(-prediction.probabilities, kind="stable")[:top]
    names = [class_name(trained.class_names, int(label)) for label in order]
    wide = max(map(len, names))
    for name, label in zip(names, order, strict=True):
        print(f"  {name.ljust(wide)}  {prediction.probabilities[label]:7.2%}")
    for line in text_grid(trained, prediction):
        print(line)
