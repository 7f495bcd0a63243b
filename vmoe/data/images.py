"""A set of labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Batch = dict[str, np.ndarray]
BACKGROUND = -1.0
"""The value of black: images lie in [-1, 1] unless a config says otherwise."""


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
      images: f32[N, H, W, channels] in [-1, 1], or the value range of the config.
      labels: i32[N].
      num_classes: labels run from 0 to num_classes - 1.
      class_names: one for each class, or ().
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of one image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def first(self, count: int | None) -> Images:
        """The first `count` images; None for all."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def batch(self, rows: slice | np.ndarray) -> Batch:
        """{"images", "labels", "mask"} of some rows; the mask is True for all."""
        labels = self.labels[rows]
        return {"images": self.images[rows], "labels": labels, "mask": np.ones(len(labels), bool)}

    def in_range(self, low: float, high: float) -> Images:
        """The images with [-1, 1] taken to [low, high]."""
        if (low, high) == (-1.0, 1.0):
            return self
        pixels = (self.images - np.float32(BACKGROUND)) * np.float32((high - low) / 2)
        return replace(self, images=pixels + np.float32(low))


def scaled(pixels: np.ndarray, white: float) -> np.ndarray:
    """Pixels [N, H, W] (grey) or [N, H, W, channels] in [0, white] as f32[N, H, W, channels]."""
    images = pixels.astype(np.float32) * (2.0 / white) + BACKGROUND
    return images if images.ndim == 4 else images[..., None]
