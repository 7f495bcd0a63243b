"""Data sets of TensorFlow Datasets, where that package is installed and has prepared them."""

from __future__ import annotations

from typing import Any

from vmoe.data.source import Record
from vmoe.errors import UserError


class TfdsSource:
    """A split of a prepared data set, read at random; nothing is downloaded.

    Args:
      name: of the data set, with a config or version as TFDS writes them: "cifar10:3.0.2".
      split: "train", "train[:99%]", ...
      data_dir: where TFDS keeps its data sets; "" for its own default.
      keys: the features that hold the image and the label.

    Raises:
      UserError: if TFDS is not installed, or the data set is not there as array_record files.
    """

    def __init__(self, name: str, split: str, data_dir: str, keys: tuple[str, str]):
        tfds = _package()
        self._image, self._label = keys
        self._name = f"{name}, {split}"
        try:
            builder = tfds.builder(name, data_dir=data_dir or None)
            label = builder.info.features[self._label]
            self.num_classes, self.class_names = int(label.num_classes), tuple(label.names)
            self._records = builder.as_data_source(
                split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
        except (
            Exception
        ) as error:  # TFDS raises errors of its own, of TensorFlow and of the readers
            raise UserError(
                f"{name} cannot be read with TFDS: {' '.join(str(error).split())[:300]}; fix: "
                f"prepare it as array_record files first: tfds build {name} "
                "--file_format=array_record"
            ) from None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Record:
        record = self._records[row]
        return Record(record[self._image], int(record[self._label]), f"{self._name}, image {row}")


def load_tfds(
    name: str, splits: tuple[str, str], data_dir: str, keys: tuple[str, str]
) -> tuple[TfdsSource, TfdsSource]:
    """The training and test split of a data set."""
    train, test = (TfdsSource(name, split, data_dir, keys) for split in splits)
    return train, test


def _package() -> Any:
    try:
        import tensorflow_datasets
    except ImportError:
        raise UserError(
            'data.name="tfds" needs the package tensorflow-datasets; fix: pip install it, or '
            'data.name="array_record" with data.path the folder of its files'
        ) from None
    return tensorflow_datasets
