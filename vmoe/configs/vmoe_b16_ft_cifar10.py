r"""V-MoE-B/16 fine-tuned on CIFAR-10 at 128 pixels, from vmoe_b16_i21k.

    tfds build cifar10 --file_format=array_record
    vmoe train --config=vmoe/configs/vmoe_b16_ft_cifar10.py --workdir=runs/b16_cifar10 \
      --config.init_from.path=CHECKPOINT

Expected, published: 98.7 % on the test images (mean of three seeds), in about 10 min on a TPUv3-8.
Not run by this project.
"""

from vmoe.config import CheckpointConfig, TrainConfig
from vmoe.configs._published import NEW_HEAD, finetuning, released_vmoe, sgd


def get_config() -> TrainConfig:
    """The run."""
    return TrainConfig(
        workdir="runs/vmoe_b16_ft_cifar10",
        steps=1000,
        log_every=100,
        eval_every=100,
        init_from=NEW_HEAD,
        model=released_vmoe(
            "V-MoE-B/16", "every-2", 10, capacity_factor=1.5, representation_size=None
        ),
        data=finetuning("cifar10", "train[:98%]", "test", 128),
        optim=sgd(1.5e-3, warmup_steps=100),
        checkpoint=CheckpointConfig(every=1000, keep=1),
    )
