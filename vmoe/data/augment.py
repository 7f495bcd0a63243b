"""Changes to training images that keep what they show."""

from __future__ import annotations

import numpy as np

from vmoe.data.images import BACKGROUND


def random_shift(
    images: np.ndarray, rng: np.random.Generator, most: int, black: float = BACKGROUND
) -> np.ndarray:
    """Moves each of f32[B, H, W, channels] by -most..most pixels along each axis, filling black."""
    if not most:
        return images
    batch, height, width, _ = images.shape
    room = ((0, 0), (most, most), (most, most), (0, 0))
    padded = np.pad(images, room, constant_values=black)
    down, right = rng.integers(0, 2 * most + 1, size=(2, batch))
    rows = down[:, None] + np.arange(height)
    columns = right[:, None] + np.arange(width)
    return padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
