"""Operations on one image: sizes, shares, chances; and what a config may say of them."""

import numpy as np
import pytest
from PIL import Image

from vmoe.data.ops import OPS, central_crop, flip_lr, inception_crop, parse_ops, resize_small
from vmoe.errors import UserError


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column, green the row: a crop shows where it is from."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


def test_resize_small_keeps_the_aspect_ratio():
    assert resize_small(picture(40, 20), 10).size == (20, 10)
    assert resize_small(picture(20, 41), 10).size == (10, 20)
    assert resize_small(picture(7, 7), 10).size == (10, 10)


def test_central_crop():
    cropped = np.asarray(central_crop(gradient(10, 8), 4))
    np.testing.assert_array_equal(cropped[0, :, 0], [3, 4, 5, 6])
    np.testing.assert_array_equal(cropped[:, 0, 1], [2, 3, 4, 5])


def test_flip_lr_mirrors_half_of_the_time():
    rng = np.random.default_rng(0)
    firsts = [np.asarray(flip_lr(gradient(5, 1), rng))[0, 0, 0] for _ in range(400)]
    assert set(firsts) == {0, 4}
    assert 0.4 < np.mean(np.array(firsts) == 4) < 0.6


def test_inception_crop_has_the_stated_areas_and_aspect_ratios():
    """Of a gradient the corners of the crop can be read off, to about a pixel."""
    rng, image = np.random.default_rng(0), gradient(240, 200)
    areas, aspects = [], []
    for _ in range(300):
        cropped = np.asarray(inception_crop(image, rng, 48, 0.2, 0.6), np.float64)
        # 48 samples lie half a step inside the crop on either side.
        width = np.ptp(cropped[24, :, 0]) * 48 / 47
        height = np.ptp(cropped[:, 24, 1]) * 48 / 47
        areas.append(width * height / (240 * 200))
        aspects.append(width / height)
    assert 0.18 < min(areas) < 0.24 < 0.56 < max(areas) < 0.63
    assert 0.35 < np.mean(areas) < 0.45
    assert 0.7 < min(aspects) < 0.78 < 1.28 < max(aspects) < 1.4


def test_where_no_crop_fits_the_whole_image_is_taken():
    whole = inception_crop(gradient(100, 2), np.random.default_rng(0), 10, 1.0, 1.0)
    np.testing.assert_array_equal(whole, gradient(100, 2).resize((10, 10), 2))


def test_a_config_entry_becomes_a_step():
    steps = parse_ops("f", (("resize", 6, 8), ("inception_crop", 4), ("flip_lr",)))
    assert [step.random for step in steps] == [False, True, True]
    image = picture(12, 10)
    for step in steps:
        image = step.apply(image, np.random.default_rng(0))
    assert image.size == (4, 4)
    assert steps[0].apply(picture(3, 3), np.random.default_rng(0)).size == (8, 6)


@pytest.mark.parametrize(
    "entry, message",
    [
        (("resise", 3), r'f has "resise"; fix: did you mean "resize"\?'),
        ((), r'f has ""; fix: use one of central_crop'),
        (("resize",), r'missing a required argument: \'height\'; fix: \("resize", height, width\)'),
        (("flip_lr", 1), r'too many positional arguments; fix: \("flip_lr"\)'),
        (("resize", "big"), r"'big' is no number that can be used"),
        (("central_crop", -1), r"-1 is no number"),
        (("randaugment", True, 3), r"True is no number"),
    ],
)
def test_an_entry_that_cannot_be_used(entry, message):
    with pytest.raises(UserError, match=message):
        parse_ops("f", (entry,))


def test_every_operation_is_listed_with_a_sentence():
    assert all(function.__doc__ for function in OPS.values())
