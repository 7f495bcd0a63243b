"""Operations on one image: Pillow in, Pillow out; a config lists them by name with their arguments.

A random one draws from the generator it is given and from nothing else.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vmoe.data.randaugment import randaugment
from vmoe.errors import UserError

BILINEAR = Image.Resampling.BILINEAR
ASPECTS = 3 / 4, 4 / 3
ATTEMPTS = 100


def resize(image: Image.Image, height: int, width: int | None = None) -> Image.Image:
    """Resizes to height x width (a square without width), bilinear and antialiased."""
    return image.resize((width or height, height), BILINEAR)


def resize_small(image: Image.Image, side: int) -> Image.Image:
    """Resizes so that the smaller side has `side` pixels; the aspect ratio stays."""
    scale = side / min(image.size)
    width, height = (max(side, round(scale * length)) for length in image.size)
    return image.resize((width, height), BILINEAR)


def central_crop(image: Image.Image, side: int) -> Image.Image:
    """The square of `side` pixels in the middle; what is missing outside is black."""
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def inception_crop(
    image: Image.Image,
    rng: np.random.Generator,
    side: int,
    area_min: float = 0.05,
    area_max: float = 1.0,
) -> Image.Image:
    """A random part, resized to a square of `side` pixels.

    Its share of the area is uniform in [area_min, area_max] and its aspect ratio in [3/4, 4/3];
    draws that do not fit are repeated, up to 100 times, then the whole image is taken.

    Source: arXiv:1409.4842, section 6, with the smallest area of the released recipes.
    """
    width, height = image.size
    for _ in range(ATTEMPTS):
        area = rng.uniform(area_min, area_max) * width * height
        aspect = rng.uniform(*ASPECTS)
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 1 <= w <= width and 1 <= h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return image.resize((side, side), BILINEAR, box=(left, top, left + w, top + h))
    return resize(image, side)


def flip_lr(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirrors left and right half of the time."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


class Op(NamedTuple):
    """One step of a pipeline: image and generator to image.

    Attributes:
      apply: the step with its arguments.
      random: whether it draws.
    """

    apply: Callable[[Image.Image, np.random.Generator], Image.Image]
    random: bool


OPS: dict[str, Callable[..., Image.Image]] = {
    "central_crop": central_crop,
    "flip_lr": flip_lr,
    "inception_crop": inception_crop,
    "randaugment": randaugment,
    "resize": resize,
    "resize_small": resize_small,
}


def parse_ops(field: str, entries: Sequence[tuple[Any, ...]]) -> tuple[Op, ...]:
    """The steps of a config entry such as (("inception_crop", 224), ("flip_lr",)).

    Raises:
      UserError: names the field, what is wrong with the entry, and the fix.
    """
    return tuple(_parse(field, entry) for entry in entries)


def _parse(field: str, entry: tuple[Any, ...]) -> Op:
    name, *arguments = entry or ("",)
    if name not in OPS:
        close = difflib.get_close_matches(str(name), OPS, n=1)
        hint = f'did you mean "{close[0]}"? ' if close else ""
        raise UserError(f'{field} has "{name}"; fix: {hint}use one of {", ".join(sorted(OPS))}')
    function = OPS[name]
    draws = "rng" in inspect.signature(function).parameters
    wanted = [p for p in inspect.signature(function).parameters if p not in ("image", "rng")]
    problem = _problem(function, draws, arguments)
    if problem:
        usage = ", ".join([f'"{name}"', *wanted])
        raise UserError(f"{field} has {entry!r}: {problem}; fix: ({usage})")
    if draws:
        return Op(lambda image, rng: function(image, rng, *arguments), True)
    return Op(lambda image, _: function(image, *arguments), False)


def _problem(function: Callable[..., Any], draws: bool, arguments: Sequence[Any]) -> str | None:
    try:
        inspect.signature(partial(function, *([None] * (1 + draws)))).bind(*arguments)
    except TypeError as error:
        return str(error)
    bad = [a for a in arguments if isinstance(a, bool) or not isinstance(a, (int, float)) or a < 0]
    return f"{bad[0]!r} is no number that can be used" if bad else None
