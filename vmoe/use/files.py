"""Files that a user names: images to read, results to write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vmoe.config import DataConfig
from vmoe.data.ops import BILINEAR, parse_ops
from vmoe.data.source import CorruptImage, Record
from vmoe.data.stored import decode
from vmoe.errors import UserError
from vmoe.use.trained import Shape
from vmoe.weights.whole import written_whole


def read_image(path: str | Path, shape: Shape, data: DataConfig) -> np.ndarray:
    """An image file as the model takes it: f32[H, W, channels] in the value range of the run.

    It goes through the run's data.test_ops; what has another size then is resized, without regard
    to its aspect ratio. It is made grey or RGB as the model needs.

    Raises:
      UserError: if the file cannot be read or is no whole image; names it.
    """
    height, width, channels = shape
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"image {path} cannot be read: {error.strerror}; fix: another") from None
    try:
        image = decode(Record(content, 0, str(path)), channels)
    except CorruptImage as problem:
        raise UserError(
            f"image {path} is no image that can be decoded ({problem.reason}); "
            "fix: a whole PNG, JPEG, or the like"
        ) from None
    for op in parse_ops("data.test_ops", data.test_ops):
        image = op.apply(image, np.random.default_rng(0))
    if image.size != (width, height):
        image = image.resize((width, height), BILINEAR)
    low, high = data.value_range
    pixels = np.asarray(image, np.float32) * ((high - low) / 255.0) + low
    return pixels.reshape(shape).astype(np.float32)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all, also over an older one.

    Raises:
      UserError: if it cannot be written.
    """
    with written_whole(Path(path), replace=True) as (temporary,):
        temporary.write_bytes(content)


def make_folder(flag: str, name: str | None) -> Path | None:
    """The folder of a flag, made if it is not there; None if the flag was not given.

    Raises:
      UserError: if it cannot be made.
    """
    if name is None:
        return None
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--{flag}={name} is no folder and cannot be made one: {error.strerror}; "
            "fix: another name"
        ) from None
    return folder
