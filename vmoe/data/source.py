"""Sets of stored images: each record is read when it is asked for, by its number."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from vmoe.data.images import Images


class Record(NamedTuple):
    """One labelled image as it is stored.

    Attributes:
      image: an encoded file (JPEG, PNG, ...), or u8[H, W] or u8[H, W, channels].
      label: its class.
      name: where it is from, for messages.
    """

    image: bytes | np.ndarray
    label: int
    name: str


class CorruptImage(Exception):
    """A record that cannot be read or decoded: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Source(Protocol):
    """Records by number, from any thread; labels run from 0 to num_classes - 1.

    The classes have names, one for each, or ().

    Reading one raises CorruptImage if it is damaged.
    """

    num_classes: int
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Record: ...


class ArraySource:
    """Images in memory, as records of u8 pixels."""

    def __init__(self, images: Images):
        self._images = images
        self.num_classes, self.class_names = images.num_classes, images.class_names

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Record:
        pixels = np.rint((self._images.images[row] + 1.0) * 127.5).astype(np.uint8)
        return Record(pixels, int(self._images.labels[row]), f"image {row}")
