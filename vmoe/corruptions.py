"""Images made worse, by five degrees of noise or blur, as of ImageNet-C and CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vmoe.data.images import Batch
from vmoe.data.pipeline import ImageSet

SMALL = 64
"""Images with fewer pixels a side get the degrees of CIFAR-10-C, others those of ImageNet-C."""
DEGREES = {
    "noise": {"small": (0.04, 0.06, 0.08, 0.09, 0.10), "large": (0.08, 0.12, 0.18, 0.26, 0.38)},
    "blur": {"small": (0.4, 0.6, 0.7, 0.8, 1.0), "large": (1.0, 2.0, 3.0, 4.0, 6.0)},
}
"""Standard deviations: of the noise as a share of the value range, of the blur in pixels.

Source: arXiv:1903.12261 and the code released with it.
"""


def noise(images: np.ndarray, degree: float, rng: np.random.Generator) -> np.ndarray:
    """Normal noise on images f32[B, H, W, channels] in [0, 1], clipped to that range."""
    drawn = rng.standard_normal(images.shape, np.float32)
    return np.clip(images + np.float32(degree) * drawn, 0.0, 1.0)


def blur(images: np.ndarray, degree: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian filter along height and width; the edge pixels go on outside."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(images, (0.0, degree, degree, 0.0), mode="nearest")


CORRUPTIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
}


class Corrupted:
    """A set of images, each made worse when it is asked for; the noise depends on the row only.

    Args:
      images: the set.
      kind: of CORRUPTIONS.
      severity: 1 to 5.
      value_range: the values of black and white.
    """

    def __init__(
        self, images: ImageSet, kind: str, severity: int, value_range: tuple[float, float]
    ):
        size = "small" if max(images.shape[:2]) < SMALL else "large"
        self._images, self._kind = images, kind
        self._degree = DEGREES[kind][size][severity - 1]
        self._low, self._high = value_range
        self.shape, self.num_classes = images.shape, images.num_classes

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, rows: slice) -> Batch:
        """As the set's own."""
        batch: dict[str, Any] = dict(self._images.batch(rows))
        span = self._high - self._low
        unit = (batch["images"] - self._low) / span
        worse = np.concatenate(
            [self._worse(unit[n : n + 1], rows.start + n) for n in range(len(unit))]
        )
        return batch | {"images": (worse * span + self._low).astype(np.float32)}

    def _worse(self, image: np.ndarray, row: int) -> np.ndarray:
        """With a generator of its own, so that the size of a batch changes nothing."""
        rng = np.random.default_rng([row, len(self._kind)])
        return CORRUPTIONS[self._kind](image, self._degree, rng)
