"""RandAugment: a few operations drawn from sixteen, each at one published magnitude.

Source: arXiv:1909.13719, with the ranges of the code released with it. There the mean grey that
contrast turns around is the number of pixels over 256; here it is the mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Rng = np.random.Generator
MOST = 10.0
"""The magnitude at which the ranges below are given; larger ones go on linearly."""
GREY = 128
"""Fills what an operation uncovers."""


def randaugment(image: Image.Image, rng: Rng, layers: int, magnitude: float) -> Image.Image:
    """Applies `layers` operations, drawn with equal chances and replacement."""
    for index in rng.integers(len(OPERATIONS), size=layers):
        image = list(OPERATIONS.values())[index](image, magnitude / MOST, rng)
    return image


def _autocontrast(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return image.rotate(_signed(30.0 * share, rng), fillcolor=_fill(image))


def _posterize(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    """Keeps int(4 * share) bits, so more at larger magnitudes; 8 leave the image as it is."""
    kept = 0xFF00 >> min(8, int(4 * share)) & 0xFF
    return image.point([v & kept for v in range(256)] * _channels(image))


def _solarize(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageOps.solarize(image, int(256 * share))


def _solarize_add(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    more = int(110 * share)
    return image.point(
        [min(255, v + more) if v < 128 else v for v in range(256)] * _channels(image)
    )


def _color(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageEnhance.Color(image).enhance(_factor(share))


def _contrast(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(_factor(share))


def _brightness(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(_factor(share))


def _sharpness(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(_factor(share))


def _shear_x(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return _affine(image, (1.0, _signed(0.3 * share, rng), 0.0, 0.0, 1.0, 0.0))


def _shear_y(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return _affine(image, (1.0, 0.0, 0.0, _signed(0.3 * share, rng), 1.0, 0.0))


def _translate_x(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return _affine(image, (1.0, 0.0, _signed(100.0 * share, rng), 0.0, 1.0, 0.0))


def _translate_y(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    return _affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, _signed(100.0 * share, rng)))


def _cutout(image: Image.Image, share: float, rng: Rng) -> Image.Image:
    """Greys a square of twice int(40 * share) pixels around a random point of the image."""
    pad = int(40 * share)
    column, row = (int(rng.integers(length)) for length in image.size)
    box = (
        max(0, column - pad), max(0, row - pad),
        min(image.width, column + pad), min(image.height, row + pad),
    )  # fmt: skip
    changed = image.copy()
    changed.paste(_fill(image), box)
    return changed


OPERATIONS: dict[str, Callable[[Image.Image, float, Rng], Image.Image]] = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "cutout": _cutout,
    "solarize_add": _solarize_add,
}
"""Each takes the image and the magnitude as a share of MOST."""


def _factor(share: float) -> float:
    """How far to go from the plain image (0) past the original (1)."""
    return 1.8 * share + 0.1


def _signed(value: float, rng: Rng) -> float:
    return value if rng.random() < 0.5 else -value


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=_fill(image)
    )


def _channels(image: Image.Image) -> int:
    return len(image.getbands())


def _fill(image: Image.Image) -> tuple[int, ...] | int:
    return GREY if _channels(image) == 1 else (GREY,) * _channels(image)
