"""The experts of every patch, as text in the patches' places and as a picture."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vmoe.drawing.patches import STYLE, expert_colour, image_uri, patch_picture
from vmoe.layers.patches import patch_grid
from vmoe.use.classify import Prediction
from vmoe.use.trained import Trained

MOST = 4
"""Experts named per patch; of more, those with the largest weights."""


def experts_of(weights: np.ndarray) -> list[list[int]]:
    """Per token of f32[T, E] the experts that saw it, the largest weight first."""
    order = np.argsort(-weights, axis=-1, kind="stable")
    return [
        [int(e) for e in line[:MOST] if weights[token, e] > 0] for token, line in enumerate(order)
    ]


def text_grid(trained: Trained, prediction: Prediction) -> Iterator[str]:
    """Lines of text: for each MoE block the experts of each patch, "." where none saw it."""
    rows, columns = patch_grid(*trained.image_shape[:2], trained.config.model.patch_size)
    for block, per_member in prediction.experts.items():
        for member, weights in enumerate(per_member):
            of_member = f", member {member}" if len(per_member) > 1 else ""
            cells = [",".join(map(str, e)) or "." for e in experts_of(weights)]
            extra, patches = cells[: -rows * columns], cells[-rows * columns :]
            token = f"; class token {extra[0]}" if extra else ""
            yield f"experts of each patch, {block}{of_member}{token}"
            wide = max(map(len, patches)) + 2
            for r in range(rows):
                yield "  " + "".join(
                    cell.rjust(wide) for cell in patches[r * columns : (r + 1) * columns]
                )


def picture(trained: Trained, image: np.ndarray, prediction: Prediction, title: str) -> str:
    """An SVG file: the image, and per MoE block its patches in the colour of their first expert.

    A patch that no expert saw stays dark.
    """
    rows, columns = patch_grid(*trained.image_shape[:2], trained.config.model.patch_size)
    uri = image_uri(image, *trained.config.data.value_range)
    clear = [[("#000", 0.0)] * columns] * rows
    panels = [patch_picture(uri, clear, side=220, caption=title)]
    for block, per_member in prediction.experts.items():
        first = experts_of(per_member[0])[-rows * columns :]
        fills = [
            [(expert_colour(e[0]), 0.6) if e else ("#000", 0.75) for e in first[r : r + columns]]
            for r in range(0, rows * columns, columns)
        ]
        names = [
            [
                f"experts {', '.join(map(str, e))}" if e else "dropped"
                for e in first[r : r + columns]
            ]
            for r in range(0, rows * columns, columns)
        ]
        panels.append(patch_picture(uri, fills, side=220, caption=block, labels=names))
    height = 220 * rows // columns + 30
    placed = "".join(
        f'<g transform="translate({10 + 235 * n} 10)">{panel}</g>' for n, panel in enumerate(panels)
    )
    width = 235 * len(panels) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 10}" '
        f'viewBox="0 0 {width} {height + 10}">{STYLE}'
        f'<rect width="100%" height="100%" fill="#fff"/>{placed}</svg>\n'
    )
