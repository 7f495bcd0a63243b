"""Sets of images made of others: some of the rows, or fitted to another model."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vmoe.data.images import Batch
from vmoe.data.pipeline import ImageSet

Range = tuple[float, float]


class Chosen:
    """Some rows of a set, i64[N], in that order."""

    def __init__(self, images: ImageSet, rows: np.ndarray):
        self._images, self._rows = images, rows
        self.shape, self.num_classes = images.shape, images.num_classes

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: slice) -> Batch:
        """As the set's own."""
        return self._images.batch(self._rows[rows])


class Fitted:
    """A set whose images are resized, made grey or RGB, and moved to another value range.

    Args:
      images: the set, with values in `given`.
      given: its values of black and white.
      shape: (H, W, channels) wanted.
      wanted: values of black and white wanted.
    """

    def __init__(self, images: ImageSet, given: Range, shape: tuple[int, int, int], wanted: Range):
        self._images, self._given, self._wanted = images, given, wanted
        self.shape, self.num_classes = shape, images.num_classes

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, rows: slice) -> Batch:
        """As the set's own."""
        batch = dict(self._images.batch(rows))
        return batch | {"images": np.stack([self._fit(image) for image in batch["images"]])}

    def _fit(self, image: np.ndarray) -> np.ndarray:
        height, width, channels = self.shape
        low, high = self._given
        pixels = np.clip((image - low) * (255.0 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        picture = picture.convert("L" if channels == 1 else "RGB")
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        low, high = self._wanted
        fitted = np.asarray(picture, np.float32) * ((high - low) / 255.0) + low
        return fitted.reshape(self.shape)
