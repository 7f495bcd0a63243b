"""V-MoE-S/32 with 8 experts, Last-2, on ImageNet (ILSVRC 2012) from scratch, 300 epochs.

    tfds build imagenet2012 --file_format=array_record
    vmoe train --config=vmoe/configs/vmoe_s32_ilsvrc.py --workdir=runs/s32

Expected, published: 76.8 % on the validation hundredth, 73.1 % on the 50,000 images that this
config tests on, in 5 h 50 min on a TPUv3-32. Not run by this project.
"""

from vmoe.config import CheckpointConfig, MixupConfig, TrainConfig
from vmoe.configs._published import ILSVRC_TRAIN, adam, pretraining, released_vmoe

BATCH = 8192


def get_config() -> TrainConfig:
    """The run; augmentation light1 of the released configs."""
    return TrainConfig(
        workdir="runs/vmoe_s32_ilsvrc",
        steps=300 * ILSVRC_TRAIN // BATCH,
        log_every=100,
        eval_every=1000,
        loss="sigmoid",
        mixup=MixupConfig(0.2),
        model=released_vmoe(
            "V-MoE-S/32", "last-2", 1000, expert_dropout=0.2, eval_capacity_factor=4.0
        ),
        data=pretraining(
            "imagenet2012", "train[:99%]", "validation", BATCH, ("randaugment", 2, 10)
        ),
        optim=adam(3e-3),
        checkpoint=CheckpointConfig(every=1000, keep=1),
    )
