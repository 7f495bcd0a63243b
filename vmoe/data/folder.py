"""Image folders: one subfolder for each class."""

from __future__ import annotations

from pathlib import Path

from vmoe.data.source import CorruptImage, Record
from vmoe.errors import UserError

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}


class FolderSource:
    """The files path/split/CLASS/NAME, in the order of their names.

    Raises:
      UserError: if there is no such folder, none of its subfolders holds an image, or a class is
        not among `class_names`.
    """

    def __init__(self, path: str, split: str, class_names: tuple[str, ...] | None = None):
        root = Path(path) / split
        found = _class_folders(root)
        self.class_names = class_names or tuple(found)
        self.num_classes = len(self.class_names)
        unknown = [name for name in found if name not in self.class_names]
        if unknown:
            raise UserError(
                f"{root / unknown[0]} is a class without training images; fix: remove the folder, "
                "or add one of that name to the training images"
            )
        self._files = [(f, self.class_names.index(name)) for name in found for f in found[name]]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> Record:
        path, label = self._files[row]
        try:
            return Record(path.read_bytes(), label, str(path))
        except OSError as error:
            raise CorruptImage(str(path), error.strerror or str(error)) from None


def load_folder(path: str, train: str, test: str) -> tuple[FolderSource, FolderSource]:
    """The training and test images of path/train/CLASS/ and path/test/CLASS/.

    A class's number is its place in the sorted names of the training folders.
    """
    source = FolderSource(path, train)
    return source, FolderSource(path, test, source.class_names)


def _class_folders(root: Path) -> dict[str, list[Path]]:
    if not root.is_dir():
        raise UserError(
            f"{root} is no folder; fix: data.path is a folder that holds data.train_split and "
            "data.test_split, each with a subfolder for each class"
        )
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    files = {folder.name: _images(folder) for folder in folders}
    files = {name: paths for name, paths in files.items() if paths}
    if not files:
        raise UserError(
            f"{root} has no subfolder with images; fix: put the images of each class into a folder "
            f"of its own there; endings known: {', '.join(sorted(ENDINGS))}"
        )
    return files


def _images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in ENDINGS)
