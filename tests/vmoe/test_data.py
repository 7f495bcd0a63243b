"""Data: what is loaded, its order and shifts, resuming, padding, and damaged files."""

import gzip
import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from vmoe.config import DataConfig
from vmoe.data.augment import random_shift
from vmoe.data.digits import load_digits
from vmoe.data.idx import load_idx, read_idx
from vmoe.data.images import Images
from vmoe.data.pipeline import evaluation_batches, load, training_batches
from vmoe.errors import UserError

CONFIG = DataConfig(batch_size=8, max_shift=1)


def numbered(count: int) -> Images:
    """Images that carry their own number as the label."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (count, 4, 4, 1)).astype(np.float32)
    return Images(pixels, np.arange(count, dtype=np.int32), 10)


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


def equal(a: list, b: list) -> bool:
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_digits():
    train, test = load_digits()
    assert (len(train), len(test)) == (1437, 360)
    for part in (train, test):
        assert part.shape == (8, 8, 1)
        assert part.images.dtype == np.float32
        assert part.labels.dtype == np.int32
        assert (part.images.min(), part.images.max()) == (-1, 1)
        assert set(part.labels) == set(range(10))
    assert np.array_equal(load_digits()[1].labels, test.labels)
    both = np.concatenate([train.images, test.images]).reshape(1797, -1)
    from sklearn.datasets import load_digits as original

    rows = {tuple(row) for row in (original().data / 8 - 1).astype(np.float32)}
    assert {tuple(row) for row in both} == rows


def test_an_epoch_has_every_image_once_and_each_its_own_order():
    batches = training_batches(numbered(24), CONFIG, seed=0)
    epochs = [np.concatenate([b["labels"] for b in take(batches, 3)]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_the_seed_decides_order_and_shifts():
    first, again, other = (take(training_batches(numbered(24), CONFIG, s), 4) for s in (3, 3, 4))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_resuming_gives_the_batches_that_would_have_come(done):
    """Across an epoch's end, with what was prefetched but not used left out."""
    batches = training_batches(numbered(20), CONFIG, seed=1)
    take(batches, done)
    position = json.loads(json.dumps(batches.get_state()))
    rest = take(batches, 6)
    resumed = training_batches(numbered(20), CONFIG, seed=1)
    resumed.set_state(position)
    assert equal(take(resumed, 6), rest)


def test_a_shift_moves_an_image_and_fills_black():
    images = np.ones((200, 4, 5, 1), np.float32) * np.arange(2, 6)[None, :, None, None]
    shifted = random_shift(images, np.random.default_rng(0), most=1)
    assert shifted.shape == images.shape
    kinds = {tuple(image[:, 2, 0]) for image in shifted}
    assert kinds == {(2, 3, 4, 5), (-1, 2, 3, 4), (3, 4, 5, -1)}
    edges = {(image[1, 0, 0] == -1, image[1, -1, 0] == -1) for image in shifted}
    assert edges == {(False, False), (True, False), (False, True)}
    assert random_shift(images, np.random.default_rng(0), most=0) is images


def test_training_images_are_the_shifted_originals():
    images = numbered(16)
    unshifted = take(training_batches(images, replace(CONFIG, max_shift=0), 0), 2)
    for batch in unshifted:
        np.testing.assert_array_equal(batch["images"], images.images[batch["labels"]])


def test_evaluation_has_every_image_once_and_marks_the_padding():
    images = numbered(10)
    batches = list(evaluation_batches(images, 4))
    assert [b["images"].shape for b in batches] == [(4, 4, 4, 1)] * 3
    assert [b["mask"].sum() for b in batches] == [4, 4, 2]
    labels = np.concatenate([b["labels"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(labels, np.arange(10))


def test_more_in_a_batch_than_images():
    with pytest.raises(UserError, match=r"batch_size=64 is more than the 5 training images"):
        load(DataConfig(train_images=5))


def write_idx(path, array: np.ndarray, zipped: bool) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture(params=[".gz", ""], ids=["gzipped", "plain"])
def folder(tmp_path, request):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    for part, count in (("train", 6), ("t10k", 2)):
        names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        arrays = pixels[:count], np.arange(count, dtype=np.uint8)
        for name, array in zip(names, arrays, strict=True):
            write_idx(tmp_path / f"{name}{request.param}", array, bool(request.param))
    return tmp_path


def test_idx_files(folder):
    train, test = load_idx(str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    np.testing.assert_allclose(train.images[..., 0], pixels / 127.5 - 1, atol=1e-6)
    assert (len(train), len(test), train.num_classes) == (6, 2, 10)
    assert list(test.labels) == [0, 1]


def test_a_missing_idx_file_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"train-images.* apt-get install dataset-fashion-mnist"):
        load_idx(str(tmp_path))


def test_damaged_idx_files(folder):
    (file,) = folder.glob("train-images*")
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"train-images.*(cannot be read|bytes of data, not the 1)"):
        load_idx(str(folder))
    file.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"train-images.*(cannot be read|no IDX file)"):
        read_idx(file)


def test_images_and_labels_of_different_sets(folder):
    (labels,) = folder.glob("train-labels*")
    (other,) = folder.glob("t10k-labels*")
    labels.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"holds \[6, 5, 4\] and .* \[2\]"):
        load_idx(str(folder))
