"""Training on several devices and processes, for test_sharded and test_processes.

As a config: `vmoe train --config=tests/vmoe/sharded.py` is the small run that they train. As a
program, `python -m tests.vmoe.sharded FOLDER [MESH]`: goes on with the run in FOLDER/many in one
process, on one device or the mesh, trains as many steps on one device, and prints both as one JSON
object.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

from tests.vmoe.tiny import CONFIG
from vmoe.checkpoint import Checkpoints
from vmoe.config import CheckpointConfig, OptimConfig, ScheduleConfig, TrainConfig
from vmoe.train import train

EVERY = 3
"""Steps between checkpoints and evaluations."""
MORE = 2
"""Steps in the other process."""


def get_config() -> TrainConfig:
    """Four groups of two images; a rate that does not depend on how long the run is."""
    assert CONFIG.model.moe is not None
    moe = replace(CONFIG.model.moe, group_images=2, layers=(0,))
    model = replace(CONFIG.model, depth=1, moe=moe)
    return replace(
        CONFIG, model=model, eval_every=EVERY,
        optim=OptimConfig(schedule=ScheduleConfig(name="constant"), clip_norm=1.0),
        checkpoint=CheckpointConfig(every=EVERY),
    )  # fmt: skip


def losses(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    folder, mesh = Path(sys.argv[1]), json.loads(sys.argv[2] if sys.argv[2:] else "{}")
    saved = Checkpoints(folder / "many").steps()[-1]
    config = replace(get_config(), steps=saved + MORE)
    train(replace(config, workdir=str(folder / "one")), io.StringIO())
    told = io.StringIO()
    train(replace(config, workdir=str(folder / "many"), mesh=tuple(mesh.items())), told)
    print(json.dumps({
        "saved": saved, "told": told.getvalue(),
        "one": losses(folder / "one"), "many": losses(folder / "many"),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
