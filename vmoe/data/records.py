"""Images in TFRecord or ArrayRecord files of tf.train.Example, read without TensorFlow."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from vmoe.data.example import parse_example
from vmoe.data.source import CorruptImage, Record
from vmoe.errors import UserError


class RecordFiles(Protocol):
    """Serialised records by number."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Which file and record it is, for messages."""

    def read(self, row: int) -> bytes:
        """The record; raises CorruptImage if it is damaged."""


class TFRecordFiles:
    """TFRecord files: length u64, its CRC u32, the record, its CRC u32; little-endian.

    Opening reads every length and checks its CRC; a record's own is checked when it is read.

    Raises:
      UserError: if a file cannot be read, is cut short, or its lengths are damaged.
    """

    HEADER = struct.Struct("<QI")

    def __init__(self, paths: Sequence[Path]):
        self._where = [place for path in paths for place in self._scan(path)]

    def __len__(self) -> int:
        return len(self._where)

    def name(self, row: int) -> str:
        """Which file and byte."""
        path, start, _ = self._where[row]
        return f"{path} at byte {start}"

    def read(self, row: int) -> bytes:
        """The record; raises CorruptImage if its CRC is not the stored one."""
        path, start, length = self._where[row]
        try:
            with path.open("rb") as file:
                file.seek(start)
                content = file.read(length + 4)
        except OSError as error:
            raise CorruptImage(self.name(row), error.strerror or str(error)) from None
        record, stored = content[:length], content[length:]
        if len(content) != length + 4 or masked_crc(record) != int.from_bytes(stored, "little"):
            raise CorruptImage(self.name(row), "the CRC is not the stored one")
        return record

    def _scan(self, path: Path) -> list[tuple[Path, int, int]]:
        places, at = [], 0
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; fix: get it again") from None
        while at < size:
            header = content[at : at + self.HEADER.size]
            length, crc = self.HEADER.unpack(header) if len(header) == 12 else (0, -1)
            if masked_crc(header[:8]) != crc or at + length + 16 > size:
                raise UserError(
                    f"{path} is damaged at byte {at}, or no TFRecord file; fix: get it again "
                    "(compressed files must be unpacked first)"
                )
            places.append((path, at + self.HEADER.size, length))
            at += length + 16
        return places


class ArrayRecordFiles:
    """ArrayRecord files, which keep their own checksums."""

    def __init__(self, paths: Sequence[Path]):
        import grain

        try:
            self._records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{paths[0]}: {' '.join(str(error).split())}; fix: get it again"
            ) from None
        self._paths = paths

    def __len__(self) -> int:
        return len(self._records)

    def name(self, row: int) -> str:
        """Which record."""
        return f"record {row} of {self._paths[0].parent}"

    def read(self, row: int) -> bytes:
        """The record; raises CorruptImage if it is damaged."""
        try:
            return bytes(self._records[row])
        except (OSError, RuntimeError, ValueError) as error:
            raise CorruptImage(self.name(row), " ".join(str(error).split())) from None


class ExampleSource:
    """Labelled images out of serialised Examples; their classes have numbers only.

    Args:
      files: the records.
      keys: the features that hold the encoded image and the label.
      classes: how many; None: read off the labels, which reads every record.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, files: RecordFiles, keys: tuple[str, str], classes: int | None):
        self._files, self._keys = files, keys
        self.num_classes = classes or 1 + max(self._labels(), default=0)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> Record:
        image, label = self._features(row)
        return Record(image, label, self._files.name(row))

    def _labels(self) -> list[int]:
        labels = []
        for row in range(len(self)):
            try:
                labels.append(self._features(row)[1])
            except CorruptImage:
                continue  # reading the images will say so
        return labels

    def _features(self, row: int) -> tuple[bytes, int]:
        name = self._files.name(row)
        try:
            features = parse_example(self._files.read(row))
        except (ValueError, TypeError, struct.error) as error:
            raise CorruptImage(name, f"no tf.train.Example: {error}") from None
        found = [features.get(key) for key in self._keys]
        for key, value, kind in zip(self._keys, found, (bytes, int), strict=True):
            if not value or not isinstance(value[0], kind):
                raise UserError(
                    f"{name} has no feature {key!r} of {kind.__name__}, only "
                    f"{', '.join(sorted(features))}; fix: set data.keys=(IMAGE, LABEL)"
                )
        return found[0][0], found[1][0]  # type: ignore[index,return-value]


FORMATS: dict[str, tuple[str, Callable[[Sequence[Path]], RecordFiles]]] = {
    "tfrecord": ("tfrecord", TFRecordFiles),
    "array_record": ("array_record", ArrayRecordFiles),
}
"""A format's ending, which a shard number may follow, and its reader."""


def load_records(
    kind: str,
    path: str,
    splits: tuple[str, str],
    keys: tuple[str, str],
    classes: int | None,
) -> tuple[ExampleSource, ExampleSource]:
    """The training and test images of a folder with files such as x-train.tfrecord-00000-of-00002.

    Raises:
      UserError: if no file's name holds the split and the ending.
    """
    ending, reader = FORMATS[kind]
    train = ExampleSource(reader(_shards(path, splits[0], ending)), keys, classes)
    return train, ExampleSource(reader(_shards(path, splits[1], ending)), keys, train.num_classes)


def _shards(path: str, split: str, ending: str) -> list[Path]:
    paths = sorted(p for p in Path(path).glob(f"*{split}*.{ending}*") if p.is_file())
    if not paths:
        raise UserError(
            f"{path} has no file *{split}*.{ending}*; fix: data.path is the folder of the files, "
            "data.train_split and data.test_split are parts of their names"
        )
    return paths


def masked_crc(content: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord files store it."""
    import google_crc32c

    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
