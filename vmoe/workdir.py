"""A run's folder: its config, so that it is resumed and evaluated as what it is."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vmoe.config import TrainConfig
from vmoe.errors import UserError
from vmoe.overrides import bind

CONFIG = "config.json"
# A resumed run may be longer, or report and save at another pace. All else would change what
# the steps compute.
MAY_CHANGE = ("workdir", "steps", "log_every", "eval_every", "checkpoint", "data.eval_batch_size")


def open_workdir(config: TrainConfig) -> Path:
    """Creates config.workdir with the config in it, or checks the one that is there against it.

    Raises:
      UserError: if it cannot be written, or holds a run with other settings (named).
    """
    if not config.workdir:
        raise UserError("workdir is not set; fix: --workdir=DIR")
    workdir = Path(config.workdir)
    if (workdir / CONFIG).exists():
        _check_same(read_config(workdir), config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        unfinished = workdir / f"{CONFIG}.tmp"
        text = json.dumps(dataclasses.asdict(config), indent=1)
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, workdir / CONFIG)
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written: {error.strerror}; fix: another --workdir"
        ) from None
    return workdir


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
