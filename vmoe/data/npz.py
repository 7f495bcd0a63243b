"""One .npz file with all images: x_train, y_train, x_test and y_test, as Keras names them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from vmoe.data.images import Images, scaled
from vmoe.errors import UserError


def load_npz(path: str, train: str, test: str, classes: int | None) -> tuple[Images, Images]:
    """The images x_SPLIT, u8[N, H, W] or u8[N, H, W, channels], and labels y_SPLIT, whole numbers.

    Args:
      path: the file.
      train: the training split.
      test: the test split.
      classes: how many; None: read off the labels.

    Raises:
      UserError: if the file or an array is missing, damaged, or of another kind.
    """
    arrays = _read(Path(path), [f"{kind}_{split}" for split in (train, test) for kind in "xy"])
    pairs = [_checked(path, split, arrays) for split in (train, test)]
    highest = 1 + max(int(labels.max()) for _, labels in pairs)
    if classes is not None and highest > classes:
        raise UserError(f"{path} has label {highest - 1}; fix: data.classes={highest}")
    parts = [Images(scaled(x, 255.0), y.astype(np.int32), classes or highest) for x, y in pairs]
    return parts[0], parts[1]


def _read(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            missing = [name for name in names if name not in file.files]
            if missing:
                raise UserError(
                    f"{path} has no array {missing[0]}, only {', '.join(file.files)}; fix: name "
                    "its arrays x_SPLIT and y_SPLIT, or set data.train_split and data.test_split"
                )
            return {name: file[name] for name in names}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}; fix: give data.path=FILE.npz") from None
    except (ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no .npz file of plain arrays; fix: numpy.savez") from None


def _checked(path: str, split: str, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras stores CIFAR's
        labels = labels[:, 0]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise UserError(
            f"{path}: x_{split} is {images.dtype}{list(images.shape)}; fix: give "
            "uint8[images, height, width] or uint8[images, height, width, channels]"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
        raise UserError(
            f"{path}: y_{split} is {labels.dtype}{list(labels.shape)}; fix: give one class, 0 or "
            f"more, for each of the {len(images)} images"
        )
    return images, labels
