"""Images to patch tokens: the convolution whose stride is its kernel size."""

from __future__ import annotations

import jax

from vmoe.errors import UserError
from vmoe.layers.dense import dense, init_dense
from vmoe.layers.params import Params, lecun_normal


def init_patch_embedding(key: jax.Array, patch: int, channels: int, width: int) -> Params:
    """Returns kernel [patch, patch, channels, width] and bias [width]."""
    return init_dense(key, (patch, patch, channels), (width,), lecun_normal)


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of patches in an image.

    Raises:
      UserError: if the image is not a whole number of patches.
    """
    if height % patch or width % patch or not height or not width:
        nearest = " x ".join(str(max(patch, round(n / patch) * patch)) for n in (height, width))
        raise UserError(
            f"an image of {height} x {width} pixels is not a whole number of {patch} x {patch} "
            f"patches; fix: resize it, for example to {nearest}, or change patch_size"
        )
    return height // patch, width // patch


def patch_embedding(params: Params, images: jax.Array) -> jax.Array:
    """Maps images [B, H, W, channels] to [B, H/patch, W/patch, width] in the images' dtype.

    Raises:
      UserError: if the image does not fit the kernel.

    Source: arXiv:2010.11929, section 3.1.
    """
    batch, height, width, channels = images.shape
    patch, _, expected, _ = params["kernel"].shape
    if channels != expected:
        raise UserError(
            f"images have {channels} channels, the model was initialised for {expected}; "
            "fix: give init the image_shape that apply sees"
        )
    rows, columns = patch_grid(height, width, patch)
    blocks = images.reshape(batch, rows, patch, columns, patch, channels)
    return dense(params, blocks.transpose(0, 1, 3, 2, 4, 5), dims=3)
