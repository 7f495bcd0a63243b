"""Each process reads its own images of every batch: together they are the batches of one."""

from dataclasses import replace

import numpy as np
import pytest

from vmoe.config import DataConfig
from vmoe.data.images import Images
from vmoe.data.pipeline import evaluation_batches, training_batches
from vmoe.data.source import ArraySource, CorruptImage
from vmoe.data.stored import StoredImages

CONFIG = DataConfig(batch_size=6, max_shift=1, threads=2)
PARTS = (np.array([0, 1, 4]), np.array([2, 3, 5]))


class Counting(ArraySource):
    """Notes which images are read; if corrupt, every seventh cannot be."""

    def __init__(self, images, corrupt=False):
        super().__init__(images)
        self.read, self._corrupt = [], corrupt

    def __getitem__(self, row):
        self.read.append(row)
        if self._corrupt and row % 7 == 3:
            raise CorruptImage(str(row), "on purpose")
        return super().__getitem__(row)


def numbered():
    images = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4, 1)
    return Images(images.astype(np.float32), np.arange(20, dtype=np.int32), 20)


def in_memory():
    return numbered(), CONFIG


def stored():
    rng = np.random.default_rng(0)
    pixels = Images(rng.integers(0, 255, (20, 4, 4, 1)).astype(np.uint8), np.arange(20), 20)
    return StoredImages(ArraySource(pixels), (), CONFIG), CONFIG


def skipping():
    config = replace(CONFIG, corrupt="skip")
    pixels = Images(np.zeros((20, 4, 4, 1), np.uint8), np.arange(20, dtype=np.int32), 20)
    return StoredImages(Counting(pixels, corrupt=True), (), config), config


def take(batches, count):
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("images", [in_memory, stored, skipping])
def test_the_parts_are_those_of_the_whole_and_so_is_the_position(images):
    images, config = images()
    whole = training_batches(images, config, 0)
    parts = [training_batches(images, config, 0, own) for own in PARTS]
    for _ in range(7):
        batch = next(whole)
        for own, part in zip(PARTS, parts, strict=True):
            mine = next(part)
            for name in batch:
                np.testing.assert_array_equal(mine[name], batch[name][own])
    assert [part.get_state() for part in parts] == [whole.get_state()] * 2
    resumed = training_batches(images, config, 0, PARTS[1])
    resumed.set_state(whole.get_state())
    np.testing.assert_array_equal(next(resumed)["labels"], next(whole)["labels"][PARTS[1]])


def test_only_own_images_are_read():
    source = Counting(Images(np.zeros((600, 4, 4, 1), np.uint8), np.arange(600), 600))
    config = replace(CONFIG, prefetch=1)
    batches = training_batches(StoredImages(source, (), config), config, 0, PARTS[0])
    labels = np.concatenate([b["labels"] for b in take(batches, 50)])
    assert set(labels) <= set(source.read)
    assert len(source.read) <= 50 * 3 + config.batch_size + 3  # those that are made ahead


@pytest.mark.parametrize("images", [in_memory, stored, skipping])
def test_evaluation_sees_every_image_once(images):
    images, _ = images()
    places = np.arange(8)  # 6 images, filled up to 8
    whole = list(evaluation_batches(images, 6))
    parts = [list(evaluation_batches(images, 6, own)) for own in (places[:4], places[4:])]
    assert [len(part) for part in parts] == [len(whole)] * 2
    for batch, *pair in zip(whole, *parts, strict=True):
        both = {name: np.concatenate([part[name] for part in pair]) for name in batch}
        for name in batch:
            np.testing.assert_array_equal(both[name][:6], batch[name])
        assert not both["mask"][6:].any()
