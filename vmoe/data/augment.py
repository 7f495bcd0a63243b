"""Changes to training images that keep what they show."""

from __future__ import annotations

import numpy as np

from vmoe.data.images import BACKGROUND


def random_shift(
    images: np.ndarray, rng: np.random.Generator, most: int, black: float = BACKGROUND
) -> np.ndarray:
    """Moves each of f32[B, H, W, channels] by -most..most pixels along each axis, filling black."""
    return shifted(images, draw_shifts(len(images), rng, most), most, black)


def draw_shifts(batch: int, rng: np.random.Generator, most: int) -> np.ndarray:
    """Of each image of a batch how far it moves down and right, i64[2, B] in 0..2 * most."""
    return rng.integers(0, 2 * most + 1, size=(2, batch)) if most else np.zeros((2, batch), int)


def shifted(
    images: np.ndarray, shifts: np.ndarray, most: int, black: float = BACKGROUND
) -> np.ndarray:
    """Images moved by their `draw_shifts`."""
    if not most:
        return images
    batch, height, width, _ = images.shape
    room = ((0, 0), (most, most), (most, most), (0, 0))
    padded = np.pad(images, room, constant_values=black)
    down, right = shifts
    rows = down[:, None] + np.arange(height)
    columns = right[:, None] + np.arange(width)
    return padded[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
