"""A run before its first step, made of a checkpoint: to be trained, or used as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vmoe.checkpoint import Checkpoints
from vmoe.config import TrainConfig
from vmoe.data import pipeline
from vmoe.errors import UserError
from vmoe.init_config import InitFromConfig, for_model
from vmoe.routing import check_router
from vmoe.start import start_from
from vmoe.state import TrainState, init_state
from vmoe.weights import files
from vmoe.weights.leaf import flat, leaf_of
from vmoe.workdir import ImagesKept, open_workdir

Shape = tuple[int, int, int]


def write_run(config: TrainConfig, init: InitFromConfig, image_shape: Shape | None) -> str:
    """Makes config.workdir a run at step 0; returns the line that says what came from where.

    `vmoe train` with the same config goes on from there; what uses a trained model finds it there.

    Args:
      config: the run's, saved as it is.
      init: the checkpoint and its rules.
      image_shape: (height, width, channels); None: that of config.data.

    Raises:
      UserError: if the checkpoint does not fill the model, or the workdir holds a run already;
        nothing is written then.
    """
    checkpoints = Checkpoints(config.workdir, config.checkpoint.keep)
    if checkpoints.steps():
        raise UserError(f"workdir {config.workdir} holds a run already; fix: another one")
    position, names = None, config.data.class_names
    if image_shape is None:
        images, _ = pipeline.load(config.data)
        image_shape, names = images.shape, images.class_names
        position = pipeline.training_batches(images, config.data, config.seed).get_state()
    state, line = _begun(config, init, image_shape)
    open_workdir(config, ImagesKept(image_shape, names))
    checkpoints.save(0, tuple(state), position)
    return line


def write_weights(out: Path, config: TrainConfig, init: InitFromConfig, image_shape: Shape) -> str:
    """Writes the first weights of such a run to a file; returns the line about them.

    Raises:
      UserError: if the checkpoint does not fill the model, or the file is there already.
    """
    state, line = _begun(config, replace(init, moments=False), image_shape)
    files.write(out, {path: leaf_of(np.asarray(a)) for path, a in flat(state.params).items()})
    return line


def _begun(config: TrainConfig, init: InitFromConfig, image_shape: Shape) -> tuple[TrainState, str]:
    for_model(init, config.model.moe)
    if config.model.moe is not None:
        check_router(config.model.moe.router)
    files.read(init.path)  # a wrong path is said before anything is drawn
    return start_from(replace(config, init_from=init), init_state(config, image_shape))
