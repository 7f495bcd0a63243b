"""The Soft MoE models: one slot an expert, experts in the last blocks, every image on its own.

Source: arXiv:2308.00951, section 3.3 and appendix; JFT-4B is not public, so these are templates for
a data set of your own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from vmoe.config import CheckpointConfig, OptimConfig, ScheduleConfig, TrainConfig
from vmoe.configs._published import pretraining
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig
from vmoe.variants import final

CLASSES = 29_593


class Size(NamedTuple):
    """Dimensions, and how many experts in how many of the last blocks."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_experts: int
    last: int


SIZES = {
    # No experts and blocks are published for Ti: those of S.
    "Ti": Size(192, 12, 768, 3, 128, 6),
    "S": Size(384, 12, 1536, 6, 128, 6),
    "B": Size(768, 12, 3072, 12, 128, 6),
    "L": Size(1024, 24, 4096, 16, 128, 12),
    "H": Size(1280, 32, 5120, 16, 256, 16),
}


def soft_moe(size: str, patch: int, steps: int) -> TrainConfig:
    """Soft MoE of a size, on 29,593 classes at 224 pixels, for so many steps of 4096 images."""
    dims = SIZES[size]
    router = RouterConfig(name="soft", noise_std=0.0, dims=(("C", 1),))
    moe = MoEConfig(
        num_experts=dims.num_experts, layers=final(dims.last, dims.depth), group_images=1,
        router=router,
    )  # fmt: skip
    model = ModelConfig(
        num_classes=CLASSES, patch_size=patch, width=dims.width, depth=dims.depth,
        mlp_dim=dims.mlp_dim, num_heads=dims.num_heads, head="gap", qk_norm=True,
        head_bias_init=-math.log(CLASSES), moe=moe,
    )  # fmt: skip
    return TrainConfig(
        workdir=f"runs/soft_moe_{size.lower()}{patch}",
        steps=steps,
        log_every=250,
        eval_every=1000,
        loss="sigmoid",
        model=model,
        data=pretraining("jft4b", "full[16384:]", "full[:16384]", 4096),
        optim=OptimConfig(
            name="adam", lr=1e-3, clip_norm=1.0,
            weight_decay=(
                ("head/kernel", 3.0), (".*/kernel", 0.03), (".*/Moe/Router/scale", 0.03)
            ),
            schedule=ScheduleConfig(
                name="rsqrt", warmup_steps=10_000, cooldown_steps=50_000, timescale=10_000
            ),
        ),
        checkpoint=CheckpointConfig(every=1000, keep=2),
    )  # fmt: skip
