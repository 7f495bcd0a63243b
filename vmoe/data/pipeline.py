"""Batches: an endless, resumable stream for training, one padded pass for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vmoe.config import DataConfig
from vmoe.data.augment import draw_shifts, random_shift, shifted
from vmoe.data.class_names import checked_names
from vmoe.data.digits import load_digits
from vmoe.data.folder import load_folder
from vmoe.data.idx import load_idx
from vmoe.data.images import Batch, Images
from vmoe.data.npz import load_npz
from vmoe.data.ops import parse_ops
from vmoe.data.records import load_records
from vmoe.data.source import ArraySource, Source
from vmoe.data.stored import StoredImages
from vmoe.data.tfds import load_tfds
from vmoe.errors import UserError

ImageSet = Images | StoredImages
Loaded = Images | Source

LOADERS: dict[str, Callable[[DataConfig], tuple[Loaded, Loaded]]] = {
    "digits": lambda c: load_digits(),
    "idx": lambda c: load_idx(c.path),
    "npz": lambda c: load_npz(c.path, c.train_split, c.test_split, c.classes),
    "folder": lambda c: load_folder(c.path, c.train_split, c.test_split),
    "tfrecord": lambda c: load_records(
        "tfrecord", c.path, (c.train_split, c.test_split), c.keys, c.classes
    ),
    "array_record": lambda c: load_records(
        "array_record", c.path, (c.train_split, c.test_split), c.keys, c.classes
    ),
    "tfds": lambda c: load_tfds(c.tfds_name, (c.train_split, c.test_split), c.path, c.keys),
}


def load(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """The training and test images of a config.

    Raises:
      UserError: if a file is missing or damaged, there is less than one batch to train on, or
        train_ops or test_ops cannot be used.
    """
    train_ops = parse_ops("data.train_ops", config.train_ops)
    test_ops = parse_ops("data.test_ops", config.test_ops)
    if any(op.random for op in test_ops):
        raise UserError("data.test_ops has a random operation; fix: resize or central_crop")
    train, test = (
        _prepared(loaded, ops, config)
        for loaded, ops in zip(LOADERS[config.name](config), (train_ops, test_ops), strict=True)
    )
    train = train.first(config.train_images)
    if len(train) < config.batch_size:
        raise UserError(
            f"data.batch_size={config.batch_size} is more than the {len(train)} training images; "
            f"fix: data.batch_size <= {len(train)}"
        )
    if train.shape != test.shape:
        raise UserError(
            f"training images are {list(train.shape)} and test images {list(test.shape)}; fix: "
            "data.train_ops and data.test_ops that end in one size"
        )
    return train, test


def training_batches(
    images: ImageSet, config: DataConfig, seed: int, own: np.ndarray | None = None
) -> Any:
    """An endless grain iterator of {"images": f32[B, H, W, C], "labels": i32[B]}.

    Each epoch has its own order, and each image (in memory: each batch) its own draws; both
    depend on the seed and the position only. `get_state()` gives the position, a dict JSON can
    hold, `set_state()` goes there: the batches that follow are the same as without the
    interruption.

    Args:
      images: of the training set.
      config: batch size, shifts, threads.
      seed: of order and draws.
      own: the places in every batch that are wanted, i64[N] with N <= B; None: all. What is read
        and drawn for an image, and the position, do not depend on it; only images that are wanted
        are read, but for corrupt="skip", where which images make a batch depends on all before.
    """
    import grain

    from vmoe.data.own import OwnElements, OwnOfBatches, OwnPosition

    order = grain.MapDataset.range(len(images)).seed(seed).shuffle().repeat()
    black = config.value_range[0]
    if isinstance(images, StoredImages):

        def read(row: int, rng: np.random.Generator) -> Batch | None:
            found = images.read(row, rng)
            if found is None:
                return None  # grain leaves it out and goes on to the next row
            image = random_shift(found[0][None], rng, config.max_shift, black)[0]
            return {"images": image, "labels": np.int32(found[1])}

        size, elements = config.batch_size, order.random_map(read)
        options = grain.ReadOptions(config.threads, config.prefetch * size)
        if own is None or len(own) == size:
            return iter(elements.to_iter_dataset(options).batch(size))
        if config.corrupt == "skip":
            return OwnOfBatches(iter(elements.to_iter_dataset(options).batch(size)), own)
        some = OwnElements(elements, own, size).to_iter_dataset(options)
        return OwnPosition(iter(some.batch(len(own))), len(own), size)

    mine = slice(None) if own is None else own

    def fetch(rows: np.ndarray, rng: np.random.Generator) -> Batch:
        shifts = draw_shifts(len(rows), rng, config.max_shift)  # of all, whoever wants them
        rows, shifts = rows[mine], shifts[:, mine]
        chosen = shifted(images.images[rows], shifts, config.max_shift, black)
        return {"images": chosen, "labels": images.labels[rows]}

    batches = order.batch(config.batch_size).random_map(fetch)
    # The arrays are in memory: one thread that stays a few batches ahead keeps a step busy.
    return iter(batches.to_iter_dataset(grain.ReadOptions(1, config.prefetch)))


def evaluation_batches(
    images: ImageSet, size: int, own: np.ndarray | None = None
) -> Iterator[Batch]:
    """Every image once, in order, in batches of the same size.

    The last batch is filled with black images, marked False in "mask" bool[size], as are images
    that cannot be read. With `own`, i64[N] in rising order, batches have these places only; those
    from `size` on are black.
    """
    for start in range(0, len(images), size):
        rows: slice | np.ndarray = slice(start, start + size)
        if own is not None:
            rows = start + own[own < min(size, len(images) - start)]
        batch = images.batch(rows)
        missing = (size if own is None else len(own)) - len(batch["labels"])
        yield {
            name: np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)))
            for name, array in batch.items()
        }


def skipped(images: ImageSet) -> dict[str, str]:
    """The images that could not be read so far, and why, by name."""
    return images.skipped.reasons if isinstance(images, StoredImages) else {}


def _prepared(loaded: Loaded, ops: tuple[Any, ...], config: DataConfig) -> ImageSet:
    """Images in memory stay there; with operations, or from files, they are prepared one by one."""
    if isinstance(loaded, Images):
        if not ops and config.channels is None:
            names = checked_names(config.class_names, loaded.class_names, loaded.num_classes)
            return replace(loaded, class_names=names).in_range(*config.value_range)
        loaded = ArraySource(loaded)
    return StoredImages(loaded, ops, config)
