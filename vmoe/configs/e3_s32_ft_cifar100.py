r"""E^3-S/32 (two members, 8 experts, 1 to a token) fine-tuned on CIFAR-100 at 128 pixels.

    tfds build cifar100 --file_format=array_record
    vmoe train --config=vmoe/configs/e3_s32_ft_cifar100.py --workdir=runs/e3_cifar100 \
      --config.init_from.path=CHECKPOINT

Expected, published: 81.31 % on the test images (mean of three seeds), in about 10 min on a TPUv3-8.
Not run by this project.
"""

from vmoe.config import CheckpointConfig, TrainConfig
from vmoe.configs._published import NEW_HEAD_ONLY, finetuning, sgd
from vmoe.model_config import MoEConfig, RouterConfig
from vmoe.variants import variant


def get_config() -> TrainConfig:
    """The run; the released one routes each device's 128 images together."""
    router = RouterConfig(name="ensemble", k=1, capacity_factor=1.5)
    moe = MoEConfig(num_experts=8, ensemble_size=2, group_images=128, router=router)
    return TrainConfig(
        workdir="runs/e3_s32_ft_cifar100",
        steps=2000,
        log_every=100,
        eval_every=100,
        init_from=NEW_HEAD_ONLY,
        model=variant("V-MoE-S/32", "last-2", num_classes=100, moe=moe, head_bias_init=-10.0),
        data=finetuning("cifar100", "train[:98%]", "test", 128),
        optim=sgd(5e-3, warmup_steps=200),
        checkpoint=CheckpointConfig(every=1000, keep=1),
    )
