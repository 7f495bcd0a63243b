"""The smallest run that has everything: digits, one MoE block, noise, dropped tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vmoe.config import CheckpointConfig, DataConfig, OptimConfig, ScheduleConfig, TrainConfig
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig

CONFIG = TrainConfig(
    steps=12,
    log_every=1,
    model=ModelConfig(
        num_classes=10, patch_size=4, width=8, depth=2, mlp_dim=16, num_heads=2, dropout=0.1,
        moe=MoEConfig(num_experts=4, layers=(1,), group_images=4, router=RouterConfig(k=2)),
    ),
    data=DataConfig(batch_size=8, eval_batch_size=80),
    optim=OptimConfig(schedule=ScheduleConfig(warmup_steps=3), clip_norm=1.0),
    checkpoint=CheckpointConfig(every=4, keep=2),
)  # fmt: skip


def in_workdir(path: Path, **changes: Any) -> TrainConfig:
    return replace(CONFIG, workdir=str(path), **changes)
