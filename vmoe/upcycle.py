"""Sparse upcycling: a sparse model whose experts all start as the MLP of a dense one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from vmoe.checkpoint import Checkpoints
from vmoe.config import TrainConfig
from vmoe.data import pipeline
from vmoe.errors import UserError
from vmoe.routing import check_router
from vmoe.start import start_from
from vmoe.state import TrainState, init_state
from vmoe.weights import files
from vmoe.weights.leaf import flat, leaf_of
from vmoe.workdir import open_workdir

CHANNELS = 3


def upcycled(
    config: TrainConfig, dense: str, image_shape: tuple[int, int, int]
) -> tuple[TrainState, str]:
    """The first state of a sparse run, each expert a copy of the dense MLP, and a line about it.

    With a router whose weights sum to one, such as mixtral's, and no dropped token, it gives the
    dense model's logits.

    Args:
      config: the sparse run; rules of its init_from come before the standard one.
      dense: path of a checkpoint of the dense model.
      image_shape: (height, width, channels).

    Raises:
      UserError: if the config is dense, or the checkpoint does not fill the model.

    Source: arXiv:2212.05055.
    """
    if config.model.moe is None:
        raise UserError("there are no MoE blocks to upcycle to; fix: a config with model.moe")
    check_router(config.model.moe.router)
    files.read(dense)  # a wrong path is said before anything is drawn
    init = replace(config.init_from, path=dense, upcycle=True)
    return start_from(replace(config, init_from=init), init_state(config, image_shape))


def write_weights(out: Path, config: TrainConfig, dense: str, size: int) -> str:
    """Writes the upcycled weights for images of `size` x `size` x 3; returns the line about it.

    Raises:
      UserError: as `upcycled`, or if the file is there already.
    """
    if out.exists():
        raise UserError(f"{out} is there already; fix: another --out, or remove it first")
    state, line = upcycled(config, dense, (size, size, CHANNELS))
    files.write(out, {path: leaf_of(np.asarray(a)) for path, a in flat(state.params).items()})
    return line


def write_workdir(config: TrainConfig, dense: str) -> str:
    """Makes config.workdir a run that stands before its first step; returns the line about it.

    `vmoe train` with the same config goes on from there.

    Raises:
      UserError: as `upcycled`, or if the workdir holds a run already; nothing is written then.
    """
    checkpoints = Checkpoints(config.workdir, config.checkpoint.keep)
    if checkpoints.steps():
        raise UserError(f"workdir {config.workdir} holds a run already; fix: another --out")
    images, _ = pipeline.load(config.data)
    state, line = upcycled(config, dense, images.shape)
    batches = pipeline.training_batches(images, config.data, config.seed)
    open_workdir(config)
    checkpoints.save(0, tuple(state), batches.get_state())
    return line
