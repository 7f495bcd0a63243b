"""RandAugment: sixteen operations, each against its definition; what they uncover is grey."""

import numpy as np
import pytest
from PIL import Image

from vmoe.data import randaugment as module
from vmoe.data.randaugment import OPERATIONS, randaugment

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


class Fixed:
    """Draws what it was told."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)

    integers = lambda self, *_, **__: self.numbers.pop(0)  # noqa: E731


def run(name: str, magnitude: float, *draws: float, pixels=PIXELS) -> np.ndarray:
    image = OPERATIONS[name](Image.fromarray(pixels), magnitude / 10, Fixed(*draws))
    assert image.size == (pixels.shape[1], pixels.shape[0])
    return np.asarray(image).astype(int)


def blend(plain: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(plain + factor * (PIXELS.astype(float) - plain), 0, 255)


GREY = np.asarray(Image.fromarray(PIXELS).convert("L")).astype(int)[..., None]


def test_the_sixteen():
    assert len(OPERATIONS) == 16
    assert set(OPERATIONS) == {
        "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color",
        "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
        "translate_y", "cutout", "solarize_add",
    }  # fmt: skip


@pytest.mark.parametrize("magnitude", [2, 5, 10, 20])
def test_colours(magnitude):
    factor = 1.8 * magnitude / 10 + 0.1
    close = {"atol": 1}  # Pillow rounds
    np.testing.assert_array_equal(run("invert", magnitude), 255 - PIXELS.astype(int))
    np.testing.assert_allclose(run("color", magnitude), blend(GREY, factor), **close)
    np.testing.assert_allclose(run("brightness", magnitude), blend(0, factor), **close)
    mean = int(GREY.mean() + 0.5)
    np.testing.assert_allclose(run("contrast", magnitude), blend(mean, factor), **close)
    most = int(256 * magnitude / 10)
    wanted = np.where(most > PIXELS, PIXELS, 255 - PIXELS)
    np.testing.assert_array_equal(run("solarize", magnitude), wanted)
    more = np.minimum(255, PIXELS.astype(int) + int(110 * magnitude / 10))
    np.testing.assert_array_equal(
        run("solarize_add", magnitude), np.where(PIXELS < 128, more, PIXELS)
    )
    kept = min(8, int(4 * magnitude / 10))
    np.testing.assert_array_equal(run("posterize", magnitude), PIXELS >> (8 - kept) << (8 - kept))


def test_sharpness_keeps_the_border_and_turns_around_the_smoothed_image():
    around = sum(
        np.roll(PIXELS.astype(int), (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)
    )
    smooth = (around + 4 * PIXELS.astype(int)) / 13
    ours = run("sharpness", 10)
    inner = np.s_[1:-1, 1:-1]
    np.testing.assert_allclose(ours[inner], blend(smooth, 1.9)[inner], atol=2)
    np.testing.assert_array_equal(ours[0], PIXELS[0])


def test_histograms():
    dull = (PIXELS // 4 + 50).astype(np.uint8)
    stretched = run("autocontrast", 3, pixels=dull)
    assert (stretched.min((0, 1)) == 0).all()
    assert (stretched.max((0, 1)) >= 254).all()  # Pillow cuts off what is below a whole
    flat = run("equalize", 3, pixels=dull)
    for channel in range(3):
        counts, _ = np.histogram(flat[..., channel], 8, (0, 256))
        assert counts.min() > 0.5 * counts.mean()


def test_translations_and_shears():
    """A draw below a half is the positive sign: the image moves left or up, and grey comes in."""
    np.testing.assert_array_equal(run("translate_x", 1, 0.1)[:, :-10], PIXELS[:, 10:])
    np.testing.assert_array_equal(run("translate_x", 1, 0.9)[:, 10:], PIXELS[:, :-10])
    np.testing.assert_array_equal(run("translate_y", 1, 0.1)[:-10], PIXELS[10:])
    assert (run("translate_y", 1, 0.1)[-10:] == 128).all()
    sheared = run("shear_x", 10, 0.1)
    for row in (0, 10, 23):
        moved = int(0.3 * (row + 0.5) + 0.5)  # of a pixel's middle, to the nearest
        np.testing.assert_array_equal(sheared[row, : 32 - moved], PIXELS[row, moved:])
    sheared = run("shear_y", 10, 0.9)
    assert (sheared[0, -1] == 128).all()
    np.testing.assert_array_equal(sheared[4:, 0], PIXELS[4:, 0])


def test_rotation():
    quarter = run("rotate", 30, 0.1, pixels=PIXELS[:, :24])
    np.testing.assert_array_equal(quarter, np.rot90(PIXELS[:, :24]))
    assert (run("rotate", 10, 0.1)[0, 0] == 128).all()


def test_cutout_greys_a_square_around_a_point():
    cut = run("cutout", 1, 30, 4)  # column 30, row 4, 4 pixels to each side
    inside = np.zeros((24, 32), bool)
    inside[0:8, 26:32] = True
    assert (cut[inside] == 128).all()
    np.testing.assert_array_equal(cut[~inside], PIXELS[~inside])


def test_as_many_layers_as_told_each_with_equal_chances(monkeypatch):
    seen = []
    spies = {
        name: lambda image, share, rng, name=name: (seen.append((name, share)), image)[1]
        for name in OPERATIONS
    }
    monkeypatch.setattr(module, "OPERATIONS", spies)
    rng = np.random.default_rng(0)
    for _ in range(800):
        randaugment(Image.fromarray(PIXELS), rng, 2, 15)
    assert len(seen) == 1600
    assert {share for _, share in seen} == {1.5}
    counts = [sum(name == n for n, _ in seen) for name in OPERATIONS]
    assert 70 < min(counts) <= max(counts) < 135


def test_grey_images_and_the_seed():
    grey = Image.fromarray(PIXELS[..., 0])
    for name in OPERATIONS:
        image = OPERATIONS[name](grey, 1.0, np.random.default_rng(0))
        assert (image.mode, image.size) == ("L", (32, 24)), name
    a, b, c = (randaugment(grey, np.random.default_rng(s), 3, 1) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (np.asarray(a) != np.asarray(c)).any()
