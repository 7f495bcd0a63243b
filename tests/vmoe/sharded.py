"""Training on several host devices, in a process of its own: prints the losses of each step.

`python -m tests.vmoe.sharded FOLDER` trains one run on one device, and one on eight of which the
last steps are resumed on another mesh, and prints both as one JSON object.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

from tests.vmoe.tiny import CONFIG
from vmoe.config import CheckpointConfig, OptimConfig, ScheduleConfig, TrainConfig
from vmoe.train import train

MESH = (("data", 2), ("expert", 2), ("model", 2))
OTHER_MESH = (("fsdp", 2), ("expert", 2))
STEPS = 5
BEFORE = 3
"""Steps on the first mesh."""


def config(workdir: Path) -> TrainConfig:
    """Four groups of two images; a rate that does not depend on how long the run is."""
    assert CONFIG.model.moe is not None
    model = replace(CONFIG.model, moe=replace(CONFIG.model.moe, group_images=2))
    return replace(
        CONFIG, workdir=str(workdir), model=model, steps=STEPS,
        optim=OptimConfig(schedule=ScheduleConfig(name="constant"), clip_norm=1.0),
        checkpoint=CheckpointConfig(every=BEFORE),
    )  # fmt: skip


def losses(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    folder = Path(sys.argv[1])
    train(config(folder / "one"), io.StringIO())
    many = config(folder / "many")
    train(replace(many, mesh=MESH, steps=BEFORE), io.StringIO())
    told = io.StringIO()
    train(replace(many, mesh=OTHER_MESH), told)
    print(json.dumps({
        "one": losses(folder / "one"), "many": losses(folder / "many"), "told": told.getvalue(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
