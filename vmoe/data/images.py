"""A set of labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BACKGROUND = -1.0
"""The value of black: images lie in [-1, 1]."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
      images: f32[N, H, W, channels] in [-1, 1].
      labels: i32[N].
      num_classes: labels run from 0 to num_classes - 1.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of one image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def first(self, count: int | None) -> Images:
        """The first `count` images; None for all."""
        return Images(self.images[:count], self.labels[:count], self.num_classes)


def scaled(pixels: np.ndarray, white: float) -> np.ndarray:
    """Grey pixels [N, H, W] in [0, white] as f32[N, H, W, 1] in [-1, 1]."""
    return (pixels.astype(np.float32) * (2.0 / white) + BACKGROUND)[..., None]
