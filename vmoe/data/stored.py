"""Images that are read, decoded and prepared one by one, when they are asked for."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from vmoe.config import DataConfig
from vmoe.data.class_names import checked_names
from vmoe.data.images import Batch
from vmoe.data.ops import Op
from vmoe.data.source import CorruptImage, Record, Source
from vmoe.errors import RunError, UserError

NAMED = 20
"""Corrupt images beyond so many are counted only."""


class Skipped:
    """The corrupt images of a run: the reason for each, by name; fatal where they may not be."""

    def __init__(self, policy: str):
        self.reasons: dict[str, str] = {}
        self._fatal = policy == "fatal"
        self._lock = threading.Lock()

    def add(self, image: CorruptImage) -> None:
        """Notes an image, once; names it on stderr.

        Raises:
          RunError: if data.corrupt is "fatal".
        """
        if self._fatal:
            raise RunError(
                f"{image.name} cannot be read: {image.reason}; fix: replace it, or "
                'data.corrupt="skip" in another workdir'
            )
        with self._lock:
            if image.name in self.reasons:
                return
            self.reasons[image.name] = image.reason
            count = len(self.reasons)
        if count <= NAMED:
            print(f"skipped {image.name}: {image.reason} ({count} so far)", file=sys.stderr)


class StoredImages:
    """A source, seen through a list of steps; the same face as `Images`, but nothing is kept.

    Attributes:
      num_classes: labels run from 0 to num_classes - 1.
      class_names: one for each class, or ().
      skipped: what could not be read so far.
    """

    def __init__(
        self, source: Source, ops: Sequence[Op], config: DataConfig, count: int | None = None
    ):
        self._source, self._ops, self._config = source, tuple(ops), config
        self._count = len(source) if count is None else min(count, len(source))
        self._shape: tuple[int, int, int] | None = None
        self.num_classes = source.num_classes
        self.class_names = checked_names(config.class_names, source.class_names, self.num_classes)
        self.skipped = Skipped(config.corrupt)

    def __len__(self) -> int:
        return self._count

    def first(self, count: int | None) -> StoredImages:
        """The first `count` images; None for all."""
        return StoredImages(self._source, self._ops, self._config, count)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of a prepared image: that of the first one that can be read.

        Raises:
          UserError: if none can.
        """
        for row in range(len(self) if self._shape is None else 0):
            if self.read(row) is not None:
                break
        if self._shape is None:
            raise UserError(f"none of the {len(self)} images can be read; fix: get them again")
        return self._shape

    def read(
        self, row: int, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, int] | None:
        """The prepared image f32[H, W, channels] and its label; None if it is corrupt.

        Raises:
          UserError: if its label or its size is not like the others'.
          RunError: if it is corrupt and that is fatal.
        """
        try:
            record = self._source[row]
            image = decode(record, self._config.channels)
        except CorruptImage as problem:
            self.skipped.add(problem)
            return None
        generator = np.random.default_rng(row) if rng is None else rng
        for op in self._ops:
            image = op.apply(image, generator)
        low, high = self._config.value_range
        pixels = np.asarray(image, np.float32) * ((high - low) / 255.0) + low
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        self._check(record, pixels.shape)
        return pixels, record.label

    def batch(self, rows: slice | np.ndarray) -> Batch:
        """{"images", "labels", "mask"} of some rows; a corrupt image is masked out."""
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        with ThreadPoolExecutor(self._config.threads) as pool:
            found = list(pool.map(self.read, numbers))
        blank = np.zeros(self.shape, np.float32), 0
        pairs = [blank if pair is None else pair for pair in found]
        return {
            "images": np.array([image for image, _ in pairs], np.float32).reshape(-1, *self.shape),
            "labels": np.array([label for _, label in pairs], np.int32),
            "mask": np.array([pair is not None for pair in found]),
        }

    def _check(self, record: Record, shape: tuple[int, ...]) -> None:
        if self._shape is None:
            self._shape = shape  # type: ignore[assignment]
        if shape != self._shape:
            raise UserError(
                f"{record.name} is {_size(shape)} and others are {_size(self._shape)}; fix: make "
                'them one size, for example data.train_ops=(("inception_crop", 224),) and '
                'data.test_ops=(("resize", 224),)'
            )
        if not 0 <= record.label < self.num_classes:
            raise UserError(
                f"{record.name} has label {record.label}, but there are {self.num_classes} "
                "classes; fix: raise data.classes, or correct the label"
            )


def decode(record: Record, channels: int | None) -> Image.Image:
    """The record's image, grey (1 channel) or RGB (3); None: RGB for files, arrays as they are.

    Raises:
      CorruptImage: if the bytes are no whole image.
    """
    try:
        if isinstance(record.image, bytes):
            image = Image.open(io.BytesIO(record.image))
            image.load()
            mode = "L" if channels == 1 else "RGB"
        else:
            image = Image.fromarray(
                record.image.squeeze(2) if _grey(record.image) else record.image
            )
            mode = {1: "L", 3: "RGB", None: image.mode}[channels]
        return image if image.mode == mode else image.convert(mode)
    except UnidentifiedImageError:  # its text names an object in memory
        raise CorruptImage(record.name, "no image of a known format") from None
    except Exception as error:  # on damaged bytes Pillow's plugins raise nearly anything
        raise CorruptImage(record.name, " ".join(str(error).split())) from None


def _grey(pixels: np.ndarray) -> bool:
    return pixels.ndim == 3 and pixels.shape[2] == 1


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}x{shape[1]} with {shape[2]} channels"
