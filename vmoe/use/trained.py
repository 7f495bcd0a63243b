"""A trained model: the config and the weights of a run, ready to be used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe import model
from vmoe.checkpoint import Checkpoints, damage
from vmoe.config import TrainConfig
from vmoe.data import pipeline
from vmoe.data.pipeline import ImageSet
from vmoe.errors import UserError
from vmoe.overrides import with_overrides
from vmoe.weights import files
from vmoe.weights.leaf import Leaves, flat, nested
from vmoe.workdir import CONFIG, ImagesKept, read_config, read_images_kept

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Trained:
    """A model as it was trained.

    Attributes:
      name: where it is from.
      config: of the run.
      params: its weights; their running average where the run keeps one.
      image_shape: (height, width, channels) of the images it was trained on.
      step: how many steps it was trained for.
      class_names: one for each class of its data, or ().
    """

    name: str
    config: TrainConfig
    params: Any
    image_shape: Shape
    step: int
    class_names: tuple[str, ...] = ()


def load_trained(path: str | Path, overrides: Sequence[str] = ()) -> Trained:
    """The newest sound checkpoint of a workdir, or the checkpoint at DIR/checkpoints/step_N.

    Newer ones that are damaged are named on stderr.

    Raises:
      UserError: if there is no run or no checkpoint, or the weights do not fit the config.
    """
    path = Path(path)
    workdir = path if (path / CONFIG).exists() or path.parent.name != "checkpoints" else (
        path.parent.parent
    )  # fmt: skip
    config = with_overrides(read_config(workdir), overrides).validate()
    shape, names = read_images_kept(workdir) or _images_of(config)
    if path == workdir and not Checkpoints(workdir).steps():
        raise UserError(f"run {path} has saved no checkpoint yet; fix: train it first")
    checkpoint = files.read(path)
    _tell_refused(workdir, checkpoint.path)
    leaves = files.weights(checkpoint.leaves)
    if config.optim.average_decay is not None:
        leaves = _averaged(checkpoint.leaves)
    arrays = {name: leaf.read() for name, leaf in leaves.items()}
    _check_fit(checkpoint.path, config, shape, arrays)
    params = jax.tree.map(jnp.asarray, nested(arrays))
    step = int(checkpoint.leaves["step"].read())
    return Trained(str(path), config, params, shape, step, config.data.class_names or names)


def images_of(trained: Trained) -> tuple[ImageSet, ImageSet]:
    """The training and test images of the run's data, which may have been changed since.

    Raises:
      UserError: if they cannot be read, or are not such as the model takes.
    """
    train, test = pipeline.load(trained.config.data)
    model, theirs, ours = trained.config.model, train.shape, trained.image_shape
    if train.num_classes > model.num_classes:
        raise UserError(
            f"the data has {train.num_classes} classes and {trained.name} was trained for "
            f"{model.num_classes}; fix: its own data, or train with init_from.path={trained.name}"
        )
    fixed = slice(None) if model.position == "learned" else slice(2, None)
    if theirs[fixed] != ours[fixed]:
        raise UserError(
            f"the data's images are {list(theirs)} and {trained.name} was trained on {list(ours)}; "
            "fix: its own data, or data.test_ops, data.train_ops and data.channels that give these"
        )
    return train, test


def _images_of(config: TrainConfig) -> ImagesKept:
    images = pipeline.load(config.data)[0]
    return ImagesKept(images.shape, images.class_names)


def _tell_refused(workdir: Path, used: Path) -> None:
    checkpoints = Checkpoints(workdir)
    for path in (checkpoints.path(step) for step in reversed(checkpoints.steps())):
        if path == used.absolute():
            return
        if problem := damage(path):
            print(f"checkpoint {path} is damaged ({problem}): refused", file=sys.stderr)


def _averaged(leaves: Leaves) -> Leaves:
    """The running average of the weights, a part of the optimiser's state."""
    paths = {path: path.partition("/average/") for path in leaves if path.startswith("opt_state/")}
    return {name: leaves[path] for path, (_, found, name) in paths.items() if found}


def _check_fit(
    path: Path, config: TrainConfig, shape: Shape, arrays: dict[str, np.ndarray]
) -> None:
    wanted = flat(jax.eval_shape(lambda k: model.init(config.model, k, shape), jax.random.key(0)))
    for name in sorted(wanted.keys() | arrays.keys()):
        found = "nothing" if name not in arrays else str(list(arrays[name].shape))
        needed = "nothing" if name not in wanted else str(list(wanted[name].shape))
        if found != needed:
            raise UserError(
                f"checkpoint {path} does not fit the config: {name} is {found}, not {needed}; "
                "fix: leave --config.model flags out, or give the workdir it was trained in"
            )
