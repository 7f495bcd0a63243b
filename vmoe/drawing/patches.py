"""Images with their patches coloured, as SVG text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

STYLE = (
    "<style>text { font: 12px system-ui, sans-serif; fill: #667085; } "
    "image { image-rendering: pixelated; }</style>"
)
"""For a picture that stands alone; on a page, the page's own style holds."""


def expert_colour(expert: int) -> str:
    """A colour per expert; neighbours in number are far apart."""
    return f"hsl({expert * 137.5 % 360:.0f} 75% 52%)"


def image_uri(image: np.ndarray, low: float, high: float) -> str:
    """A data URI of f32[H, W, channels] in [low, high], as PNG."""
    pixels = np.clip((image - low) * (255.0 / (high - low)), 0, 255).round().astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def patch_picture(
    uri: str,
    fills: Sequence[Sequence[tuple[str, float]]],
    *,
    side: int = 150,
    caption: str = "",
    labels: Sequence[Sequence[str]] | None = None,
) -> str:
    """The image, each patch covered by a colour at an opacity.

    Args:
      uri: of the image.
      fills: (colour, opacity) per row and column of patches.
      side: of the drawing in pixels; the height follows the patches.
      caption: below it.
      labels: a short text per patch; shown as a tooltip.
    """
    rows, columns = len(fills), len(fills[0])
    cell = side / columns
    height = cell * rows
    parts = [
        f'<image href="{uri}" width="{side}" height="{height:.1f}" preserveAspectRatio="none"/>'
    ]
    for r, line in enumerate(fills):
        for c, (colour, opacity) in enumerate(line):
            title = f"<title>{escape(labels[r][c])}</title>" if labels else ""
            if opacity > 0 or title:
                parts.append(
                    f'<rect x="{c * cell:.1f}" y="{r * cell:.1f}" width="{cell:.1f}" '
                    f'height="{cell:.1f}" fill="{colour}" fill-opacity="{opacity:.2f}">'
                    f"{title}</rect>"
                )
    below = height
    if caption:
        below += 18
        parts.append(f'<text x="0" y="{height + 13:.1f}">{escape(caption)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {below:.1f}" width="{side}" '
        f'role="img">{"".join(parts)}</svg>'
    )
