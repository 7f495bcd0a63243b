"""IDX files, the format of MNIST and Fashion-MNIST: big-endian header, then the entries."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from vmoe.data.images import Images, scaled
from vmoe.errors import UserError

PARTS = {"train": "train", "test": "t10k"}
HOW_TO_GET = (
    "apt-get install dataset-fashion-mnist (Debian, Ubuntu) puts Fashion-MNIST in "
    "/usr/share/datasets/fashion-mnist; or set data.path to a folder with the files"
)


def load_idx(folder: str) -> tuple[Images, Images]:
    """The training and test images of a folder with the four files of MNIST, gzipped or not.

    The names are train-images-idx3-ubyte, train-labels-idx1-ubyte, and the same with t10k, each
    with or without ".gz".

    Raises:
      UserError: if a file is missing (says how to get it), cut short, or no IDX file.
    """
    found = {
        (part, kind): _find(Path(folder), f"{prefix}-{kind}-ubyte")
        for part, prefix in PARTS.items()
        for kind in ("images-idx3", "labels-idx1")
    }
    train = _images(found["train", "images-idx3"], found["train", "labels-idx1"])
    test = _images(found["test", "images-idx3"], found["test", "labels-idx1"])
    return train, test


def read_idx(path: Path) -> np.ndarray:
    """The u8 array of an IDX file, with as many dims as its header says.

    Raises:
      UserError: if the file cannot be read, is cut short, or holds anything but u8.
    """
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; fix: get it again") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(f"{path} is no IDX file of bytes; fix: get it again")
    ndim = content[3]
    start = 4 + 4 * ndim
    shape = struct.unpack(f">{ndim}I", content[4:start]) if len(content) >= start else (-1,)
    if math.prod(shape) != len(content) - start:
        raise UserError(
            f"{path} has {len(content) - start} bytes of data, not the {math.prod(shape)} its "
            "header announces; fix: get it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _images(images_path: Path, labels_path: Path) -> Images:
    pixels, labels = read_idx(images_path), read_idx(labels_path)
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels) or not len(labels):
        raise UserError(
            f"{images_path} holds {list(pixels.shape)} and {labels_path} {list(labels.shape)}; "
            "fix: give [images, height, width] and [images] of the same set"
        )
    # All sets in this format (MNIST, Fashion-MNIST, KMNIST) have ten classes.
    classes = max(10, int(labels.max()) + 1)
    return Images(scaled(pixels, white=255.0), labels.astype(np.int32), classes)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise UserError(f"{folder / name}.gz does not exist; fix: {HOW_TO_GET}")
