"""What the published recipes share: data, optimisers, the released V-MoE models.

Source: arXiv:2106.05974, arXiv:2110.03360, arXiv:2308.00951, and the configs released with them.
"""

from __future__ import annotations

import math
from typing import Any

from vmoe.config import DataConfig, OptimConfig, ScheduleConfig
from vmoe.init_config import InitFromConfig, Rule
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig
from vmoe.variants import variant

ILSVRC_TRAIN = 1_281_167 * 99 // 100
"""Images of train[:99%]; the last hundredth is for validation."""


NEW_HEAD_ONLY = InitFromConfig(rules=(Rule("^head/", ""),), fresh=("^head/",))
"""Fine-tuning: all but the classifier comes from --config.init_from.path."""
NEW_HEAD = InitFromConfig(rules=(Rule("^head/", ""), Rule("^pre_logits/", "")), fresh=("^head/",))
"""The same for models without a representation layer, which the checkpoint has."""


def released_vmoe(name: str, placement: str, num_classes: int, **changes: Any) -> ModelConfig:
    """A model of the released checkpoints: 8 experts, 2 to a token, groups of 8 images.

    Args:
      name: such as "V-MoE-S/32".
      placement: such as "last-2".
      num_classes: logits.
      **changes: capacity_factor and eval_capacity_factor of the router, dropout of the experts
        as expert_dropout, and fields of ModelConfig.
    """
    router = RouterConfig(
        capacity_factor=changes.pop("capacity_factor", 1.05),
        eval_capacity_factor=changes.pop("eval_capacity_factor", None),
    )
    moe = MoEConfig(num_experts=8, dropout=changes.pop("expert_dropout", 0.0), router=router)
    fields = {"head_bias_init": -math.log(num_classes), **changes}
    return variant(name, placement, num_classes=num_classes, moe=moe, **fields)


def tfds(name: str, train: str, test: str, batch_size: int, **changes: Any) -> DataConfig:
    """A data set prepared by TFDS."""
    return DataConfig(
        name="tfds", tfds_name=name, train_split=train, test_split=test, batch_size=batch_size,
        eval_batch_size=1024, max_shift=0, threads=32, prefetch=4, **changes,
    )  # fmt: skip


def pretraining(name: str, train: str, test: str, batch_size: int, *more: Any) -> DataConfig:
    """224 pixels: inception crop, flip, then `more` operations; tested on the central crop."""
    return tfds(
        name, train, test, batch_size,
        train_ops=(("inception_crop", 224), ("flip_lr",), *more),
        test_ops=(("resize_small", 256), ("central_crop", 224)),
    )  # fmt: skip


def finetuning(name: str, train: str, test: str, side: int) -> DataConfig:
    """`side` pixels: inception crop and flip; tested on the whole image; batches of 1024."""
    return tfds(
        name, train, test, 1024,
        train_ops=(("inception_crop", side), ("flip_lr",)), test_ops=(("resize", side),),
    )  # fmt: skip


def adam(lr: float) -> OptimConfig:
    """Adam with a linear warmup over 10,000 steps and a linear decay to 1e-5."""
    schedule = ScheduleConfig(name="warmup_linear_decay", warmup_steps=10_000, end_value=1e-5)
    decay = ((".*/kernel", 0.1),)
    return OptimConfig(name="adam", lr=lr, clip_norm=1.0, weight_decay=decay, schedule=schedule)


def sgd(lr: float, warmup_steps: int) -> OptimConfig:
    """SGD with momentum 0.9, gradients clipped at norm 10, cosine decay to 1e-5."""
    schedule = ScheduleConfig(name="warmup_cosine_decay", warmup_steps=warmup_steps, end_value=1e-5)
    return OptimConfig(name="sgd", momentum=0.9, lr=lr, clip_norm=10.0, schedule=schedule)
