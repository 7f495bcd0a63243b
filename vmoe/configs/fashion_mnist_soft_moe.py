"""A small Soft MoE on Fashion-MNIST: 16 experts of one slot, which mix an image's 16 patches.

    vmoe train --config=vmoe/configs/fashion_mnist_soft_moe.py --workdir=runs/fashion_soft_moe

Measured with seed 0: 87.56 % test accuracy, loss 0.345.
The run is that of fashion_mnist, with another router: about 4 min on two cores that are free.
"""

from dataclasses import replace

from vmoe.config import TrainConfig
from vmoe.configs import fashion_mnist
from vmoe.model_config import MoEConfig, RouterConfig


def get_config() -> TrainConfig:
    """The run."""
    config = fashion_mnist.get_config()
    router = RouterConfig(name="soft", noise_std=0.0, dims=(("C", 1),))
    moe = MoEConfig(num_experts=16, layers=(1, 3), group_images=1, router=router)
    return replace(config, workdir="runs/fashion_soft_moe", model=replace(config.model, moe=moe))
