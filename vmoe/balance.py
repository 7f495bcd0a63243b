"""Balance without a loss: after each step, the biases of loss-free routers follow the load."""

from __future__ import annotations

from typing import Any

from moegen.routers.loss_free import update_bias
from vmoe.config import TrainConfig
from vmoe.encoder import block_name
from vmoe.optim import is_frozen


def move_biases(config: TrainConfig, before: Any, after: Any, routing: dict[str, Any]) -> Any:
    """The weights after a step, each loss-free router's bias moved by the load of that step.

    A bias starts from where it was before the optimiser, so that neither weight decay nor
    momentum moves it. Weights of other routers, and frozen ones, are returned as they are.

    Args:
      config: the run; moe.router.bias_update_rate is the step of a bias.
      before: the weights before the optimiser's update.
      after: the weights after it.
      routing: the model's metrics; each block reports load f32[G, E], the choices it served. With
        a capacity, choices that were dropped do not count.

    Source: arXiv:2408.15664, algorithm 1.
    """
    moe = config.model.moe
    if moe is None or moe.router.name != "loss_free":
        return after

    blocks = dict(after["Encoder"])
    for name in map(block_name, moe.layers):
        bias = before["Encoder"][name]["Moe"]["Router"]["bias"]
        if not is_frozen(config.optim, f"Encoder/{name}/Moe/Router/bias"):
            bias = update_bias(bias, routing[name]["load"], moe.router.bias_update_rate)
        layer = blocks[name]["Moe"]
        router = layer["Router"] | {"bias": bias}
        blocks[name] = blocks[name] | {"Moe": layer | {"Router": router}}
    return after | {"Encoder": blocks}
