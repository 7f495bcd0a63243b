"""Batches: an endless, resumable stream for training, one padded pass for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vmoe.config import DataConfig
from vmoe.data.augment import random_shift
from vmoe.data.digits import load_digits
from vmoe.data.idx import load_idx
from vmoe.data.images import Images
from vmoe.errors import UserError

Batch = dict[str, np.ndarray]


def load(config: DataConfig) -> tuple[Images, Images]:
    """The training and test images of a config.

    Raises:
      UserError: if a file is missing or damaged, or there is less than one batch to train on.
    """
    train, test = load_digits() if config.name == "digits" else load_idx(config.path)
    train = train.first(config.train_images)
    if len(train) < config.batch_size:
        raise UserError(
            f"data.batch_size={config.batch_size} is more than the {len(train)} training images; "
            f"fix: data.batch_size <= {len(train)}"
        )
    return train, test


def training_batches(images: Images, config: DataConfig, seed: int) -> Any:
    """An endless grain iterator of {"images": f32[B, H, W, C], "labels": i32[B]}.

    Each epoch has its own order, and each batch its own shifts; both depend on the seed and the
    position only. `get_state()` gives the position, a dict JSON can hold, `set_state()` goes
    there: the batches that follow are the same as without the interruption.
    """
    import grain

    def fetch(rows: np.ndarray, rng: np.random.Generator) -> Batch:
        chosen = random_shift(images.images[rows], rng, config.max_shift)
        return {"images": chosen, "labels": images.labels[rows]}

    order = grain.MapDataset.range(len(images)).seed(seed).shuffle().repeat()
    batches = order.batch(config.batch_size).random_map(fetch)
    # The arrays are in memory: one thread that stays two batches ahead keeps a step busy.
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def evaluation_batches(images: Images, size: int) -> Iterator[Batch]:
    """Every image once, in order, in batches of the same size.

    The last batch is filled with black images, marked False in "mask" bool[size].
    """
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        labels = images.labels[rows]
        missing = size - len(labels)
        yield {
            "images": np.pad(images.images[rows], ((0, missing), (0, 0), (0, 0), (0, 0))),
            "labels": np.pad(labels, (0, missing)),
            "mask": np.arange(size) < len(labels),
        }
