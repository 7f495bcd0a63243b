r"""Soft MoE S/16 on JFT-4B, or a data set of your own in its place.

    vmoe train --config=vmoe/configs/soft_moe_s16.py --workdir=runs/soft_moe_s16 \
      --config.data.tfds_name=NAME --config.model.num_classes=NUMBER

Expected: JFT-4B is not public, so no score can be compared. Not run by this project.
"""

from vmoe.config import TrainConfig
from vmoe.configs._soft_moe import soft_moe


def get_config() -> TrainConfig:
    """The run."""
    return soft_moe("S", 16, steps=4_000_000)
