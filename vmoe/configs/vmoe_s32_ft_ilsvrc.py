r"""V-MoE-S/32 fine-tuned on ImageNet (ILSVRC 2012) at 384 pixels, from vmoe_s32_ilsvrc.

    vmoe train --config=vmoe/configs/vmoe_s32_ft_ilsvrc.py --workdir=runs/s32_ft \
      --config.init_from.path=CHECKPOINT

Expected, published: 78.8 % on the validation hundredth, 75.9 % on the 50,000 images that this
config tests on, in 48 min on a TPUv3-8. Not run by this project.
"""

from vmoe.config import CheckpointConfig, TrainConfig
from vmoe.configs._published import NEW_HEAD, finetuning, released_vmoe, sgd


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        workdir="runs/vmoe_s32_ft_ilsvrc",
        steps=10_000,
        log_every=100,
        eval_every=1000,
        init_from=NEW_HEAD,
        model=released_vmoe(
            "V-MoE-S/32", "last-2", 1000, capacity_factor=1.5, representation_size=None
        ),
        data=finetuning("imagenet2012", "train[:99%]", "validation", 384),
        optim=sgd(3e-3, warmup_steps=500),
        checkpoint=CheckpointConfig(every=1000, keep=1),
    )
