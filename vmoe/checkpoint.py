"""Checkpoints: written whole or not at all, checked before use, the newest sound one found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax

from vmoe.errors import RunError, UserError
from vmoe.processes import first_says, is_first, lost_another, meet

MANIFEST = "manifest.json"
DATA_POSITION = "data_position.json"
TREE = "state"
UNFINISHED = ".unfinished-"
NONE, UNSOUND = -1, -2
"""Instead of a step: there is no checkpoint, or none that is sound."""


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: steps taken until then.
      state: the tree.
      data_position: of the data iterator; None: at its beginning.
      refused: what is wrong with the newer ones, newest first.
    """

    step: int
    state: Any
    data_position: Any
    refused: list[str]


class Checkpoints:
    """The checkpoints of a workdir.

    Each is a folder such as step_00000100 with the state that orbax wrote, the position in the
    data, and a manifest with every file's size and SHA-256.
    """

    def __init__(self, workdir: str | Path, keep: int = 3):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self.keep = keep

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """The steps with a checkpoint, in order, whether sound or not."""
        names = [path.name.removeprefix("step_") for path in self.folder.glob("step_*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def save(self, step: int, state: Any, data_position: Any) -> Path:
        """Writes a checkpoint under a temporary name, renames it, and removes the oldest.

        Of several processes each writes its own parts of the state into the folder, which all
        share; the first one renames it when all have.

        Raises:
          RunError: if it cannot be written; the earlier checkpoints are as they were.
        """
        unfinished = self.folder / f"{UNFINISHED}{self.path(step).name}"
        try:
            if is_first():
                self.folder.mkdir(parents=True, exist_ok=True)
                for left_by_a_killed_run in self.folder.glob(f"{UNFINISHED}*"):
                    _remove(left_by_a_killed_run)
                unfinished.mkdir()
            meet(f"step {step} has a folder")
            _write_tree(unfinished / TREE, state)
            meet(f"step {step} is written")
            if is_first():
                self._finish(step, unfinished, data_position)
            meet(f"step {step} is saved")
        except Exception as error:
            if lost_another(error):
                raise  # what is unfinished is removed by the next save
            if is_first():
                shutil.rmtree(unfinished, ignore_errors=True)
            raise RunError(self._failure(step, error)) from error
        return self.path(step)

    def _finish(self, step: int, unfinished: Path, data_position: Any) -> None:
        """Gives a checkpoint its name once all of it is there, and removes the oldest."""
        _write(unfinished / DATA_POSITION, json.dumps(data_position))
        _write(unfinished / MANIFEST, json.dumps(describe(unfinished), indent=1))
        # One that is already there was refused, or the run would have gone on from it.
        _remove(self.path(step))
        unfinished.rename(self.path(step))
        _sync(self.folder)
        for old in self.steps()[: -self.keep]:
            _remove(self.path(old))

    def restore(self, like: Any) -> Restored | None:
        """The newest sound checkpoint, as a tree of the structure and shapes of `like`.

        Arrays are placed as those of `like` are, whatever processes and devices wrote them. Of
        several processes the first one looks which checkpoint is sound, and all read that one.

        Returns:
          None if there is no checkpoint at all.

        Raises:
          UserError: if there are checkpoints and none is sound.
        """
        found, refused = self._newest_sound() if is_first() else (NONE, [])
        step = first_says(found)
        if step == NONE:
            return None
        if step == UNSOUND:
            what = refused[0] if refused else f"a checkpoint in {self.folder} is damaged"
            raise UserError(
                f"{what} and there is no sound one before it; fix: start in another workdir"
            )
        state, position = self._read(step, like)
        return Restored(step, state, position, refused)

    def _newest_sound(self) -> tuple[int, list[str]]:
        """Its step, or NONE or UNSOUND; and what is wrong with the newer ones."""
        refused: list[str] = []
        for step in reversed(self.steps()):
            problem = damage(self.path(step))
            if problem is None:
                return step, refused
            refused.append(f"checkpoint {self.path(step)} is damaged ({problem})")
        return (UNSOUND if refused else NONE), refused

    def _read(self, step: int, like: Any) -> tuple[Any, Any]:
        path = self.path(step)
        try:
            state = _read_tree(path / TREE, like)
        except (ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"checkpoint {path} does not fit the config ({reason}); fix: another workdir"
            ) from error
        return state, json.loads((path / DATA_POSITION).read_text(encoding="utf-8"))

    def _failure(self, step: int, error: Exception) -> str:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        steps = self.steps() if self.folder.is_dir() else []
        last = f"the last good one is {self.path(steps[-1])}" if steps else "none is before it"
        return (
            f"cannot write checkpoint {self.path(step)}: {reason}; {last}; "
            "fix: make room there or choose another workdir, and start again"
        )


def describe(path: Path) -> dict[str, Any]:
    """Every file under a folder but the manifest, as {"files": {name: {"size", "sha256"}}}."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != MANIFEST]
    return {
        "files": {
            file.relative_to(path).as_posix(): {
                "size": file.stat().st_size,
                "sha256": _digest(file),
            }
            for file in files
        }
    }


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, naming the file; None if it is sound."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, wanted in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != wanted["size"]:
            return f"{name} has {file.stat().st_size} bytes, not {wanted['size']}"
        if _digest(file) != wanted["sha256"]:
            return f"{name} has another checksum than when it was written"
    return None


def _write_tree(path: Path, state: Any) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, state)
        checkpointer.wait_until_finished()


def _read_tree(path: Path, like: Any) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes a rename in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
