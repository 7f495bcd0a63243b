r"""V-MoE-15B: 48 blocks of width 1408, 32 experts in every other one, 14.7 billion weights.

    vmoe train --config=vmoe/configs/vmoe_15b.py --workdir=runs/15b \
      --config.data.tfds_name=NAME --config.model.num_classes=NUMBER

Expected, published: 90.35 % on ImageNet after fine-tuning, 16,776 TPUv3-core-days of pre-training
on JFT-3B, which is not public. Not run by this project. The paper gives patch size, experts, k,
optimiser and the form of the schedule; warmup, cooldown, steps and rates are of the other recipes.
"""

from vmoe.config import CheckpointConfig, OptimConfig, ScheduleConfig, TrainConfig
from vmoe.configs._published import pretraining
from vmoe.variants import variant

CLASSES = 29_593


def get_config() -> TrainConfig:
    """The run; blocks are computed again in the backward, as their activations fit no memory."""
    return TrainConfig(
        workdir="runs/vmoe_15b",
        steps=1_000_000,
        log_every=100,
        eval_every=5000,
        loss="sigmoid",
        model=variant(
            "V-MoE-15B", "every-2", num_classes=CLASSES, head_bias_init=-10.0, dtype="bfloat16",
            remat="full",
        ),
        data=pretraining("jft3b", "full[16384:]", "full[:16384]", 4096),
        optim=OptimConfig(
            name="adafactor", lr=8e-4, clip_norm=1.0, momentum_dtype="bfloat16",
            weight_decay=(("head/kernel", 3.0), (".*/kernel", 0.03)),
            schedule=ScheduleConfig(
                name="rsqrt", warmup_steps=10_000, cooldown_steps=50_000, timescale=10_000
            ),
        ),
        checkpoint=CheckpointConfig(every=5000, keep=2),
    )  # fmt: skip
