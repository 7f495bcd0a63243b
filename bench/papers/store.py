"""The folder of a run: one file per result, written whole or not at all, so that it can go on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moegen.tune.whole import write_text, written_whole

SETTINGS = "settings.json"


class Store:
    """Results by name, such as "runs/dense-seed3": JSON for numbers, .npz for arrays.

    Args:
      folder: made if it is not there.
      settings: what all results in it were made with.

    Raises:
      ValueError: if the folder was made with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        wanted = json.loads(json.dumps(settings))
        if (folder / SETTINGS).is_file():
            found = self.read(SETTINGS.removesuffix(".json"))
            if found != wanted:
                keys = {*found, *wanted}
                other = ", ".join(sorted(k for k in keys if found.get(k) != wanted.get(k)))
                raise ValueError(f"--out: {folder} was made with other {other}; fix: another --out")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.write(SETTINGS.removesuffix(".json"), wanted)

    def has(self, name: str) -> bool:
        """Whether the numbers of that name are there; their arrays are written before them."""
        return self._path(name, "json").is_file()

    def read(self, name: str) -> dict[str, Any]:
        """The numbers of a name.

        Raises:
          ValueError: names the file, if it is damaged.
        """
        path = self._path(name, "json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; fix: remove it") from error
        return content  # type: ignore[no-any-return]

    def write(
        self, name: str, numbers: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Adds a result: first its arrays, then its numbers, each to a temporary file, renamed."""
        path = self._path(name, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if arrays is not None:
            _write_arrays(self._path(name, "npz"), arrays)
        write_text(path, json.dumps(dict(numbers), indent=1) + "\n")

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a name."""
        with np.load(self._path(name, "npz")) as file:
            return {key: file[key] for key in file.files}

    def _path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}.{ending}"


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
