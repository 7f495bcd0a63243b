"""The published sizes and MoE placements by name: "V-MoE-S/32" with "last-2", "ViT-B/16"."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any, NamedTuple

from vmoe.errors import UserError
from vmoe.model_config import ModelConfig, MoEConfig


class Size(NamedTuple):
    """The dimensions that a size letter stands for; `patches` are those of the paper."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patches: tuple[int, ...]


SIZES = {
    "Ti": Size(192, 12, 768, 3, (16,)),
    "S": Size(512, 8, 2048, 8, (32,)),
    "B": Size(768, 12, 3072, 12, (32, 16)),
    "L": Size(1024, 24, 4096, 16, (32, 16)),
    "H": Size(1280, 32, 5120, 16, (14,)),
    "15B": Size(1408, 48, 6400, 16, (14,)),
}
"""arXiv:2106.05974, appendix (S here has 8 layers of width 512); Ti is arXiv:2012.12877's."""

NAMES = tuple(
    f"{family}-{size}/{patch}"
    for family in ("ViT", "V-MoE")
    for size, dims in SIZES.items()
    for patch in dims.patches
)


def every(n: int, depth: int) -> tuple[int, ...]:
    """Every n-th block: n-1, 2n-1, ... below depth."""
    return tuple(range(n - 1, depth, n))


def last(n: int, depth: int) -> tuple[int, ...]:
    """The last n *odd* blocks: what "Last-n" means in the V-MoE paper."""
    return tuple(range(1, depth, 2))[-n:]


def final(n: int, depth: int) -> tuple[int, ...]:
    """The last n blocks in a row: what Soft MoE and sparse upcycling mean by the last n."""
    return tuple(range(depth))[-n:]


PLACEMENTS = {"every": every, "last": last, "final": final}


def moe_layers(placement: str, depth: int) -> tuple[int, ...]:
    """The MoE blocks of "every-2", "last-5" (odd blocks) or "final-6" (consecutive blocks).

    Raises:
      UserError: if the placement is unknown or needs more blocks than there are.
    """
    kind, _, number = placement.partition("-")
    n = int(number) if number.isdecimal() else 0
    if kind not in PLACEMENTS or n < 1:
        raise UserError(
            f'placement "{placement}" is unknown; fix: use every-n, last-n (the last n odd '
            'blocks) or final-n (the last n blocks), for example "last-2"'
        )
    layers = PLACEMENTS[kind](n, depth)
    if not layers or (kind != "every" and len(layers) < n):
        raise UserError(
            f'placement "{placement}" needs more blocks than depth={depth} has; fix: a smaller n'
        )
    return layers


def variant(
    name: str,
    placement: str | None = None,
    *,
    num_classes: int = 1000,
    moe: MoEConfig | None = None,
    **changes: Any,
) -> ModelConfig:
    """The config of a published model, for example `variant("V-MoE-S/32", "last-2")`.

    Args:
      name: "ViT-" (dense) or "V-MoE-", a size of SIZES, and a patch size, as in NAMES.
      placement: of the MoE blocks, see `moe_layers`; for V-MoE only. The default is "every-2".
      num_classes: logits per image.
      moe: experts and router; its layers are replaced by the placement. The default is the
        paper's: 32 experts, k=2, groups of 8 images, capacity factor 1.05.
      **changes: other fields of ModelConfig.

    Raises:
      UserError: if a name or placement is unknown, or a placement is given to a dense model.

    Source: arXiv:2106.05974. The representation layer has the model's width; 15B has none.
    """
    family, size, patch = _parse(name)
    dims = SIZES[size]
    config: dict[str, Any] = {
        "num_classes": num_classes,
        "patch_size": patch,
        "width": dims.width,
        "depth": dims.depth,
        "mlp_dim": dims.mlp_dim,
        "num_heads": dims.num_heads,
        "representation_size": None if size == "15B" else dims.width,
        "moe": _moe(name, family, placement, dims.depth, moe),
    }
    return ModelConfig(**{**config, **changes}).validate()


def _moe(
    name: str, family: str, placement: str | None, depth: int, moe: MoEConfig | None
) -> MoEConfig | None:
    if family == "ViT":
        if placement is not None or moe is not None:
            raise UserError(f'{name} is dense and has no MoE blocks; fix: use "V-MoE" for "ViT"')
        return None
    layers = moe_layers(placement or "every-2", depth)
    return dataclasses.replace(moe or MoEConfig(num_experts=32), layers=layers)


def _parse(name: str) -> tuple[str, str, int]:
    """Splits "V-MoE-S/32" into family, size, patch; a size with one patch may leave it out."""
    match = re.fullmatch(r"(ViT|V-MoE)-(\w+?)(?:/([1-9]\d*))?", name)
    if match and match[2] in SIZES:
        family, size, patch = match.groups()
        patches = SIZES[size].patches
        if patch or len(patches) == 1:
            return family, size, int(patch or patches[0])
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    raise UserError(f'model "{name}" is unknown; fix: {hint}use one of {", ".join(NAMES)}')
