"""Stored images: folders, .npz, ops in the stream, corrupt files, and resuming to the bit."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vmoe.config import DataConfig
from vmoe.data.pipeline import evaluation_batches, load, skipped, training_batches
from vmoe.data.stored import NAMED
from vmoe.errors import RunError, UserError
from vmoe.train import tell_skipped

SIDE = 8


def write_images(folder, count: int, seed: int, ending: str = "png") -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (12 + i % 3, 10, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.{ending}")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for seed, (part, name) in enumerate(
        [("train", "ant"), ("train", "bee"), ("test", "ant"), ("test", "bee")]
    ):
        write_images(root / part / name, 6 if part == "train" else 3, seed)
    (root / "train" / "notes.txt").write_text("no class")
    return root


def config(path, **changes) -> DataConfig:
    fields = {
        "name": "folder", "path": str(path), "batch_size": 4, "eval_batch_size": 4, "max_shift": 0,
        "train_ops": (("inception_crop", SIDE), ("flip_lr",), ("randaugment", 2, 10)),
        "test_ops": (("resize_small", SIDE), ("central_crop", SIDE)),
    }  # fmt: skip
    return DataConfig(**{**fields, **changes})


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


def equal(a: list, b: list) -> bool:
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_a_folder_has_a_class_per_subfolder(folder):
    train_images, test_images = load(config(folder))
    assert (len(train_images), len(test_images), train_images.num_classes) == (12, 6, 2)
    assert train_images.class_names == test_images.class_names == ("ant", "bee")
    batches = list(evaluation_batches(test_images, 4))
    assert [list(b["labels"]) for b in batches] == [[0, 0, 0, 1], [1, 1, 0, 0]]
    assert [b["mask"].sum() for b in batches] == [4, 2]
    first = Image.open(folder / "test" / "ant" / "00.png").resize((8, 10), 2).crop((0, 1, 8, 9))
    np.testing.assert_allclose(
        batches[0]["images"][0], np.asarray(first) / 127.5 - 1, rtol=0, atol=1e-6
    )


def test_an_epoch_has_every_image_once_prepared_anew(folder):
    images, _ = load(config(folder))
    stream = training_batches(images, config(folder), seed=0)
    epochs = [np.concatenate([b["labels"] for b in take(stream, 3)]) for _ in range(2)]
    assert [sorted(e) for e in epochs] == [[0] * 6 + [1] * 6] * 2
    assert next(stream)["images"].shape == (4, SIDE, SIDE, 3)


@pytest.mark.parametrize("corrupt", [False, True])
def test_resuming_gives_the_batches_that_would_have_come(folder, corrupt, capsys):
    settings = config(folder, corrupt="skip", max_shift=1, threads=3)
    if corrupt:
        (folder / "train" / "bee" / "02.png").write_bytes(b"no image")
    images, _ = load(settings)
    stream = training_batches(images, settings, seed=1)
    take(stream, 4)  # into the second epoch
    position = json.loads(json.dumps(stream.get_state()))
    rest = take(stream, 6)
    resumed = training_batches(load(settings)[0], settings, seed=1)
    resumed.set_state(position)
    assert equal(take(resumed, 6), rest)
    other = training_batches(images, settings, seed=2)
    other.set_state(position)
    assert not equal(take(other, 6), rest)


def test_a_corrupt_image_is_named_counted_and_left_out(folder, capsys):
    bad = folder / "train" / "bee" / "02.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    worse = folder / "test" / "ant" / "01.png"
    worse.write_bytes(b"")
    settings = config(folder, corrupt="skip")
    images, test_images = load(settings)
    labels = np.concatenate([b["labels"] for b in take(training_batches(images, settings, 0), 11)])
    assert (labels == 1).sum() == 4 * 5  # four epochs of 11 images: 6 ants and 5 bees
    assert list(skipped(images)) == [str(bad)]
    assert next(iter(evaluation_batches(test_images, 6)))["mask"].tolist() == [1, 0, 1, 1, 1, 1]
    err = capsys.readouterr().err
    assert err.count(f"skipped {bad}: ") == err.count(f"skipped {worse}: ") == 1
    assert re.search(r"truncated.* \(1 so far\)", err)


def test_a_corrupt_image_is_fatal_by_default(folder):
    bad = folder / "train" / "ant" / "03.png"
    bad.write_bytes(bad.read_bytes()[:-40])
    images, _ = load(config(folder))
    stream = training_batches(images, config(folder), 0)
    with pytest.raises(RunError, match=r"ant/03\.png cannot be read: .*; fix: replace it, or data"):
        take(stream, 3)


def test_many_corrupt_images_are_counted_without_naming_each(tmp_path, capsys):
    for part in ("train", "test"):
        write_images(tmp_path / part / "ant", NAMED + 10, 0)
    for file in list((tmp_path / "train" / "ant").iterdir())[1:]:
        file.write_bytes(b"no image")
    images, _ = load(config(tmp_path, corrupt="skip"))
    for row in range(len(images)):
        images.read(row)
    assert len(skipped(images)) == NAMED + 9
    assert capsys.readouterr().err.count("skipped") == NAMED


def test_nothing_that_can_be_read(folder):
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 12 images can be read"):
        load(config(folder, corrupt="skip"))


def test_a_run_ends_with_how_many_were_skipped(folder, capsys):
    (folder / "test" / "bee" / "01.png").write_bytes(b"no image")
    images, test_images = load(config(folder, corrupt="skip"))
    list(evaluation_batches(test_images, 4))
    out = io.StringIO()
    tell_skipped("training", images, out)
    tell_skipped("test", test_images, out)
    assert out.getvalue() == "1 test images could not be read and were skipped\n"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": "/nowhere"}, r"/nowhere/train is no folder; fix: data.path is a folder that"),
        ({"test_split": "val"}, r"val is no folder"),
        (
            {"train_ops": (), "test_ops": ()},
            r"is 1[234]x10 .* others are .*fix: make them one size",
        ),
        ({"test_ops": (("flip_lr",),)}, r"data.test_ops has a random operation"),
        ({"test_ops": (("resize", 9),)}, r"training images are \[8, 8, 3\] and test images \[9, 9"),
        ({"batch_size": 13}, r"batch_size=13 is more than the 12 training images"),
    ],
)
def test_what_cannot_be_used(folder, changes, message):
    settings = replace(config(folder), **changes)
    with pytest.raises(UserError, match=message):
        take(training_batches(load(settings)[0], settings, 0), 3)


def test_a_class_without_training_images(folder):
    write_images(folder / "test" / "cat", 1, 0)
    with pytest.raises(UserError, match=r"test/cat is a class without training images"):
        load(config(folder))


def test_a_folder_without_images(tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no subfolder with images; fix: put the images"):
        load(config(tmp_path))


def npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (12, SIDE, SIDE, 3), np.uint8),
        "y_train": np.arange(12)[:, None] % 5,
        "x_test": rng.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8),
        "y_test": np.arange(4),
    }
    arrays.update(changes)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return DataConfig(name="npz", path=str(path), batch_size=4, max_shift=0), arrays


def test_npz_with_and_without_operations(tmp_path):
    settings, arrays = npz(tmp_path / "a.npz")
    plain, test_images = load(settings)
    assert (len(plain), plain.num_classes, plain.shape) == (12, 5, (SIDE, SIDE, 3))
    wanted = arrays["x_test"] / 127.5 - 1
    np.testing.assert_allclose(test_images.images, wanted, atol=1e-6)
    flipped = replace(settings, train_ops=(("flip_lr",),), channels=1, value_range=(0.0, 1.0))
    with_ops, test_images = load(flipped)
    assert with_ops.shape == (SIDE, SIDE, 1)
    (batch,) = evaluation_batches(test_images, 4)
    assert 0 <= batch["images"].min() < 0.1 < 0.9 < batch["images"].max() <= 1
    batch = next(training_batches(with_ops, flipped, 0))
    assert (batch["images"].shape, batch["labels"].dtype) == ((4, SIDE, SIDE, 1), np.int32)


def test_a_value_range_moves_arrays_in_memory_and_the_shift_fills_its_black(tmp_path):
    settings, _ = npz(tmp_path / "a.npz", x_train=np.full((12, SIDE, SIDE), 255, np.uint8),
                      x_test=np.zeros((4, SIDE, SIDE), np.uint8))  # fmt: skip
    settings = replace(settings, value_range=(0.0, 2.0), max_shift=2)
    images, test_images = load(settings)
    assert (test_images.images == 0).all()
    batch = next(training_batches(images, settings, 0))
    assert set(np.unique(batch["images"])) == {0.0, 2.0}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_test": None}, r"has no array x_test, only x_train, y_train, y_test"),
        (
            {"x_train": np.zeros((12, SIDE, SIDE))},
            r"x_train is float64\[12, 8, 8\]; fix: give uint8",
        ),
        ({"y_train": np.zeros(12)}, r"y_train is float64\[12\]; fix: give one class"),
        ({"y_train": np.zeros(11, int)}, r"y_train is int64\[11\]"),
        ({"y_test": np.array([object()] * 4)}, r"is no .npz file of plain arrays"),
    ],
)
def test_npz_files_that_cannot_be_used(tmp_path, changes, message):
    settings, _ = npz(tmp_path / "a.npz", **changes)
    with pytest.raises(UserError, match=message):
        load(settings)


def test_more_labels_than_classes_and_damaged_npz_files(tmp_path):
    settings, _ = npz(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"has label 4; fix: data.classes=5"):
        load(replace(settings, classes=3))
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        load(settings)
    with pytest.raises(UserError, match=r"nowhere cannot be read.*No such file"):
        load(replace(settings, path="/nowhere"))


def test_tfds_that_is_not_installed():
    with pytest.raises(UserError, match=r"needs the package tensorflow-datasets; fix: pip install"):
        load(DataConfig(name="tfds", tfds_name="cifar10"))
