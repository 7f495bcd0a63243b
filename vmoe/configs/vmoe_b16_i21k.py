r"""V-MoE-B/16 with 8 experts, Every-2, on ImageNet-21k, 300 epochs.

    vmoe train --config=vmoe/configs/vmoe_b16_i21k.py --workdir=runs/b16 \
      --config.data.path=DIRECTORY_OF_TFDS

Expected: no score of its own is published; for fine-tuned ones see vmoe_b16_ft_ilsvrc and
vmoe_b16_ft_cifar10. Not run by this project.
"""

from vmoe.config import CheckpointConfig, MixupConfig, TrainConfig
from vmoe.configs._published import adam, pretraining, released_vmoe

BATCH = 4096
IMAGES = 14_197_122 - 102_400
"""All of ImageNet-21k but the first 102,400, which are tested on."""


def get_config() -> TrainConfig:
    """The run; augmentation strong1 of the released configs."""
    return TrainConfig(
        workdir="runs/vmoe_b16_i21k",
        steps=300 * IMAGES // BATCH,
        log_every=100,
        eval_every=1000,
        loss="sigmoid",
        mixup=MixupConfig(0.5),
        model=released_vmoe(
            "V-MoE-B/16", "every-2", 21_843, head_bias_init=-10.0, representation_size=None
        ),
        data=pretraining(
            "imagenet21k", "full[102400:]", "full[:102400]", BATCH, ("randaugment", 2, 20)
        ),
        optim=adam(8e-4),
        checkpoint=CheckpointConfig(every=1000, keep=1),
    )
