"""The models whose checkpoints were published with V-MoE and E^3, by the name of their files."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from vmoe import model
from vmoe.layers.params import Params
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig
from vmoe.variants import variant


class Released(NamedTuple):
    """A published checkpoint.

    Attributes:
      config: the model, with the capacity it was trained with.
      image_size: height and width of its images.
    """

    config: ModelConfig
    image_size: int

    def tree(self) -> Params:
        """Shapes and dtypes of its weights by name; nothing is allocated."""
        shape = (self.image_size, self.image_size, 3)
        return dict(jax.eval_shape(lambda key: model.init(self.config, key, shape), _KEY))


_KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)


def _v_moe(name: str, placement: str, classes: int, factor: float, **changes: Any) -> ModelConfig:
    moe = MoEConfig(num_experts=8, router=RouterConfig(k=2, capacity_factor=factor))
    bias = -math.log(classes)
    return variant(
        name, placement, num_classes=classes, moe=moe, **{"head_bias_init": bias, **changes}
    )


def _ensemble(classes: int, factor: float) -> ModelConfig:
    router = RouterConfig(name="ensemble", k=1, capacity_factor=factor)
    moe = MoEConfig(num_experts=8, ensemble_size=2, router=router)
    return variant("V-MoE-S/32", "last-2", num_classes=classes, head_bias_init=-10.0, moe=moe)


RELEASED = {
    "vmoe_s32_last2_ilsvrc2012_randaug_light1": Released(
        _v_moe("V-MoE-S/32", "last-2", 1000, 1.05), 224
    ),
    "vmoe_s32_last2_ilsvrc2012_randaug_light1_ft_ilsvrc2012": Released(
        _v_moe("V-MoE-S/32", "last-2", 1000, 1.5, representation_size=None), 384
    ),
    "vmoe_s32_last2_ilsvrc2012_randaug_medium": Released(
        _v_moe("V-MoE-S/32", "last-2", 1000, 1.05), 224
    ),
    "vmoe_b16_imagenet21k_randaug_strong": Released(
        _v_moe("V-MoE-B/16", "every-2", 21843, 1.05, head_bias_init=-10.0), 224
    ),
    "vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012": Released(
        _v_moe("V-MoE-B/16", "every-2", 1000, 1.5, representation_size=None), 384
    ),
    "eee_s32_last2_ilsvrc2012": Released(_ensemble(1000, 1.05), 224),
    "eee_s32_last2_ilsvrc2012_ft_cifar100": Released(_ensemble(100, 1.5), 128),
}
"""Read off the recipes that were published with them; the files themselves were not at hand.

Fine-tuned V-MoE models have no representation layer (pre_logits), all others have one.
"""
