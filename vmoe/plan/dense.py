"""What everything but the MoE layers takes: operations, memory traffic, gradients to be summed."""

from __future__ import annotations

from vmoe.model_config import ModelConfig

Image = tuple[int, int, int]


def tokens(model: ModelConfig, image: Image) -> int:
    """Tokens of one image in the encoder."""
    height, width, _ = image
    patches = (height // model.patch_size) * (width // model.patch_size)
    return patches + (model.head == "token")


def forward_flops(model: ModelConfig, image: Image) -> tuple[float, float]:
    """Of the products for one image, without MoE layers: those of the blocks, and the others.

    Source: counting; a test holds it to what JAX traces.
    """
    t, d, f = tokens(model, image), model.width, model.mlp_dim
    sparse = len(model.moe.layers) if model.moe else 0
    attention = model.depth * (8 * t * d * d + 4 * t * t * d)
    mlp = (model.depth - sparse) * 4 * t * d * f
    patches = t - (model.head == "token")
    rest = 2 * patches * model.patch_size**2 * image[2] * d
    if model.head == "map":
        rest += 4 * t * d * d + 4 * d * d + 4 * t * d + 4 * d * f
    if model.representation_size is not None:
        rest += 2 * d * model.representation_size
    rest += 2 * (model.representation_size or d) * model.num_classes
    return float(attention + mlp), float(rest)


def step_flops(model: ModelConfig, image: Image) -> float:
    """Of a training step, for one image: the backward is twice the forward."""
    blocks, rest = forward_flops(model, image)
    again = 1 if model.remat == "full" else 0
    return (3 + again) * blocks + 3 * rest


def activation_bytes(model: ModelConfig, image: Image) -> float:
    """Of one block and image: what a backward reads of the forward's values.

    Source: arXiv:2205.05198, equation 2, for two bytes per value.
    """
    t = tokens(model, image)
    return t * (34.0 * model.width + 5.0 * model.num_heads * t) * _bytes(model) / 2


def kept_bytes(model: ModelConfig, image: Image) -> float:
    """Of one image: what a training step holds of the forward when its backward begins."""
    block = activation_bytes(model, image)
    if model.remat == "full":  # the inputs of all blocks, and one block at a time
        inputs = tokens(model, image) * model.width * _bytes(model)
        return model.depth * inputs + block
    return model.depth * block


def traffic_bytes(model: ModelConfig, image: Image) -> float:
    """Of one image in a training step: activations written and read, forward and backward."""
    again = 1 if model.remat == "full" else 0
    return (3 + again) * model.depth * activation_bytes(model, image)


def _bytes(model: ModelConfig) -> int:
    return 2 if model.dtype == "bfloat16" else 4
