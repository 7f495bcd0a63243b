"""A run's folder: its config, so that it is resumed and evaluated as what it is."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vmoe.config import TrainConfig
from vmoe.errors import UserError
from vmoe.overrides import bind
from vmoe.processes import is_first, meet

CONFIG = "config.json"
IMAGES = "images.json"
# A resumed run may be longer, or report and save at another pace. All else would change what
# the steps compute.
MAY_CHANGE = (
    "workdir",
    "mesh",
    "steps",
    "log_every",
    "eval_every",
    "checkpoint",
    "data.eval_batch_size",
    "data.class_names",
)


class ImagesKept(NamedTuple):
    """What a run keeps of its images, so that its model can be used where its data is not.

    Attributes:
      shape: (height, width, channels).
      class_names: one for each class, or ().
    """

    shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()


def open_workdir(config: TrainConfig, images: ImagesKept | None = None) -> Path:
    """Creates config.workdir with the config in it, or checks the one that is there against it.

    Of several processes the first writes, and all must see it.

    Raises:
      UserError: if it cannot be written, holds a run with other settings (named), or is another
        folder for another process.
    """
    if not config.workdir:
        raise UserError("workdir is not set; fix: --workdir=DIR")
    workdir = Path(config.workdir)
    if (workdir / CONFIG).exists():
        _check_same(read_config(workdir), config)
    if is_first():
        _create(workdir, config, images)
    meet("the workdir is there")
    if not (workdir / CONFIG).exists():
        raise UserError(
            f"workdir {workdir} is not seen by every process; fix: a folder that all machines share"
        )
    return workdir


def _create(workdir: Path, config: TrainConfig, images: ImagesKept | None) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_json(workdir / CONFIG, dataclasses.asdict(config))
        if images is not None:
            _write_json(workdir / IMAGES, images._asdict())
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written: {error.strerror}; fix: another --workdir"
        ) from None


def read_config(workdir: Path) -> TrainConfig:
    """The config of the run in a workdir.

    Raises:
      UserError: if there is none, or this version cannot read it.
    """
    path = workdir / CONFIG
    try:
        return bind(TrainConfig, json.loads(path.read_text(encoding="utf-8"))).validate()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; fix: the --workdir of a run of `vmoe train`"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; fix: use the version of vmoe that wrote it") from None


def read_images_kept(workdir: Path) -> ImagesKept | None:
    """What a run kept of its images; None for one that did not.

    Raises:
      UserError: if the file is damaged.
    """
    path = workdir / IMAGES
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        height, width, channels = kept["shape"]
        names = tuple(map(str, kept.get("class_names", ())))
        return ImagesKept((int(height), int(width), int(channels)), names)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); fix: remove it") from None


def _write_json(path: Path, content: Any) -> None:
    """Written whole or not at all."""
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _check_same(there: TrainConfig, wanted: TrainConfig) -> None:
    old, new = (dict(_flat(dataclasses.asdict(config))) for config in (there, wanted))
    for name in sorted(old.keys() | new.keys()):
        if name in MAY_CHANGE or name.partition(".")[0] in MAY_CHANGE:
            continue
        if old.get(name) != new.get(name):
            raise UserError(
                f"workdir {wanted.workdir} holds a run with {name}={old.get(name)!r}, not "
                f"{new.get(name)!r}; fix: another --workdir, or the same value"
            )


def _flat(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
