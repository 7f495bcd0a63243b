"""What a model is: typed, frozen settings, and the checks that hold between them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from vmoe.errors import UserError

HEADS = ("token", "gap", "map")
POSITIONS = ("learned", "sincos2d", "none")
DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")
FORMATS = ("auto", "onehot", "slots", "sorted")
SAVES = ("all", "least")
EXCHANGES = ("auto", "blocks", "ragged")
OVERLAPS = ("auto", "ring", "inside")
ROUTERS = (
    "noisy_top_k",
    "ensemble",
    "expert_choice",
    "group_limited",
    "hash_layer",
    "loss_free",
    "mixtral",
    "null_experts",
    "shared_experts",
    "sigmoid_top_k",
    "soft",
    "switch",
    "transport_expert_choice",
    "transport_token_choice",
)
"""Routers of moegen, by name; a test holds the list to `moegen.routers`."""


@dataclass(frozen=True)
class RouterConfig:
    """How tokens choose experts.

    Attributes:
      name: the router; one of ROUTERS, or the user's own as "FILE.py:NAME" or "MODULE:NAME".
        "ensemble" goes with MoEConfig.ensemble_size.
      k: experts per token.
      noise_std: standard deviation of the training noise on the logits, before division by E.
      capacity_factor: buffer rows per expert, relative to an even load.
      eval_capacity_factor: the same outside training; None: as in training.
      capacity_multiple_of: rows are raised to a multiple of this; 0 for no rounding.
      batch_priority: largest gate first instead of token order (BPR).
      dropless: no capacity; every choice is served.
      importance_loss_weight, load_loss_weight, gshard_loss_weight: parts of auxiliary_loss.
      bias_update_rate: how far a training step moves the biases of loss_free.
      settings: further settings by the router's own names, such as (("jitter", 0.1),). A field
        above that the router does not have must keep its default.
      dims: sizes of dims that only this router has: (("C", 1),) gives soft one slot per expert,
        (("Z", 2),) gives null_experts two of them.
    """

    name: str = "noisy_top_k"
    k: int = 2
    noise_std: float = 1.0
    capacity_factor: float = 1.05
    eval_capacity_factor: float | None = None
    capacity_multiple_of: int = 4
    batch_priority: bool = False
    dropless: bool = False
    importance_loss_weight: float = 0.005
    load_loss_weight: float = 0.005
    gshard_loss_weight: float = 0.0
    bias_update_rate: float = 0.001
    settings: tuple[tuple[str, Any], ...] = ()
    dims: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class LoweringConfig:
    """How moegen lowers the layers; changes speed and memory, and numbers by rounding only.

    Attributes:
      save: what a layer keeps for its backward; one of SAVES.
      exchange: how sorted rows travel on a mesh; one of EXCHANGES.
      overlap: in how many chunks slots travel on a mesh, or one of OVERLAPS.
    """

    save: str = "all"
    exchange: str = "auto"
    overlap: int | str = 1


@dataclass(frozen=True)
class MoEConfig:
    """Which blocks have experts, and which.

    Attributes:
      num_experts: experts per MoE block.
      mlp_dim: hidden features of an expert; None: those of the dense blocks.
      layers: indices of the blocks whose MLP is replaced, counted from 0.
      group_images: images whose tokens compete for the same buffers (8 in the paper); each
        with its copies, where there is an ensemble.
      ensemble_size: members of a partitioned ensemble (E^3), who share the experts out among
        them. From the first MoE block on, every image is there once per member.
      dropout: rate inside the experts.
      format: moegen's storage of the routing decision; one of FORMATS.
      lowering: moegen's other choices; `moegen.Schedule` tells what each means.
      router: how tokens choose experts.
      eval_capacity_factors: one per MoE block, in order, outside training; empty: that of the
        router for all.
    """

    num_experts: int = 8
    mlp_dim: int | None = None
    layers: tuple[int, ...] = (1, 3)
    group_images: int = 8
    ensemble_size: int = 1
    dropout: float = 0.0
    format: str = "auto"
    lowering: LoweringConfig = field(default_factory=LoweringConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    eval_capacity_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """A vision transformer, dense (moe=None) or sparse.

    Attributes:
      num_classes: logits per image.
      patch_size: pixels along each side of a patch.
      width: D, features per token.
      depth: encoder blocks.
      mlp_dim: F, hidden features of the MLPs and experts.
      num_heads: attention heads; they divide the width.
      head: how tokens are pooled; one of HEADS.
      position: the position embedding; one of POSITIONS.
      representation_size: features of the tanh layer before the head; None: no such layer.
      head_bias_init: initial bias of the head.
      head_zero_init: whether the head's kernel starts at zero.
      dropout: rate after position embedding, attention and MLP layers.
      attention_dropout: rate on attention weights.
      qk_norm: whether queries and keys are normalised.
      dtype: of the computation; parameters, norms, softmax and routers stay float32.
      remat: what a training step computes again in the backward of an encoder block instead of
        keeping it: "none", "dots" (all but matrix products), or "full" (all but the block's
        input).
      moe: the sparse blocks; None for a dense ViT.
    """

    num_classes: int = 10
    patch_size: int = 4
    width: int = 64
    depth: int = 4
    mlp_dim: int = 256
    num_heads: int = 4
    head: str = "token"
    position: str = "learned"
    representation_size: int | None = None
    head_bias_init: float = 0.0
    head_zero_init: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    qk_norm: bool = False
    dtype: str = "float32"
    remat: str = "none"
    moe: MoEConfig | None = None

    def validate(self) -> ModelConfig:
        """Returns the config itself once every rule holds.

        Not done on construction: overriding fields one at a time passes through states that
        do not fit together yet.

        Raises:
          UserError: names the field, the mismatch and the fix.
        """
        for name in ("num_classes", "patch_size", "width", "depth", "mlp_dim", "num_heads"):
            _at_least_one(name, getattr(self, name))
        if self.representation_size is not None:
            _at_least_one("representation_size", self.representation_size)
        known = {"head": HEADS, "position": POSITIONS, "dtype": DTYPES, "remat": REMAT}
        for name, values in known.items():
            _one_of(name, getattr(self, name), values)
        for name in ("dropout", "attention_dropout"):
            _rate(name, getattr(self, name))
        _divides(self)
        if self.moe is not None:
            _validate_moe(self.moe, self.depth)
        return self

    def is_sparse(self, block: int) -> bool:
        """Whether block number `block` is an MoE block."""
        return self.moe is not None and block in self.moe.layers

    def of_block(self, index: int) -> ModelConfig:
        """The config as encoder block number `index` has it: with its own capacity factor."""
        moe = self.moe
        if moe is None or not moe.eval_capacity_factors or index not in moe.layers:
            return self
        factor = moe.eval_capacity_factors[sorted(moe.layers).index(index)]
        router = replace(moe.router, eval_capacity_factor=factor)
        return replace(self, moe=replace(moe, router=router, eval_capacity_factors=()))

    @property
    def ensemble_size(self) -> int:
        """Rows of logits per image: the members of the ensemble, 1 where there is none."""
        return 1 if self.moe is None else self.moe.ensemble_size


def _divides(config: ModelConfig) -> None:
    if config.width % config.num_heads:
        raise UserError(
            f"width={config.width} is not a multiple of num_heads={config.num_heads}; "
            f"fix: for example width={-(-config.width // config.num_heads) * config.num_heads}"
        )
    if config.position == "sincos2d" and (config.width % 4 or config.width < 8):
        raise UserError(
            f'position="sincos2d" needs a width that is a multiple of 4 and at least 8, not '
            f'{config.width}; fix: change width, or position="learned"'
        )


def _validate_moe(moe: MoEConfig, depth: int) -> None:
    for name in ("num_experts", "group_images", "ensemble_size"):
        _at_least_one(f"moe.{name}", getattr(moe, name))
    if moe.mlp_dim is not None:
        _at_least_one("moe.mlp_dim", moe.mlp_dim)
    _rate("moe.dropout", moe.dropout)
    _one_of("moe.format", moe.format, FORMATS)
    if moe.format == "sorted" and moe.dropout:
        raise UserError(
            f'moe.format="sorted" has no buffer slots for moe.dropout={moe.dropout} to draw for; '
            'fix: moe.format="auto", or moe.dropout=0'
        )
    _validate_lowering(moe.lowering)
    if not isinstance(moe.layers, tuple) or not all(type(i) is int for i in moe.layers):
        raise UserError(
            f"moe.layers={moe.layers!r} is no tuple of block numbers; fix: for example (1, 3)"
        )
    outside = [i for i in moe.layers if not 0 <= i < depth]
    if outside:
        raise UserError(
            f"moe.layers has block {outside[0]}, but depth={depth} has blocks 0 to {depth - 1}; "
            "fix: count blocks from 0"
        )
    if not moe.layers or len(set(moe.layers)) != len(moe.layers):
        raise UserError(
            f"moe.layers={moe.layers} must name at least one block, and each block once; "
            "fix: moe=None gives a dense model"
        )
    if moe.eval_capacity_factors and len(moe.eval_capacity_factors) != len(moe.layers):
        raise UserError(
            f"moe.eval_capacity_factors has {len(moe.eval_capacity_factors)} entries for "
            f"{len(moe.layers)} MoE blocks; fix: one for each of blocks {_listed(moe.layers)}"
        )
    for factor in moe.eval_capacity_factors:
        _positive("moe.eval_capacity_factors", factor)
    _validate_ensemble(moe)
    _validate_router(moe.router, moe.num_experts, moe.ensemble_size)


def _validate_lowering(lowering: LoweringConfig) -> None:
    _one_of("moe.lowering.save", lowering.save, SAVES)
    _one_of("moe.lowering.exchange", lowering.exchange, EXCHANGES)
    if isinstance(lowering.overlap, str):
        _one_of("moe.lowering.overlap", lowering.overlap, OVERLAPS)
    else:
        _at_least_one("moe.lowering.overlap", lowering.overlap)


def _validate_ensemble(moe: MoEConfig) -> None:
    if moe.ensemble_size > 1 and moe.router.name != "ensemble":
        raise UserError(
            f"moe.ensemble_size={moe.ensemble_size} needs a router that keeps members apart, not "
            f'"{moe.router.name}"; fix: moe.router.name="ensemble"'
        )
    if moe.num_experts % moe.ensemble_size:
        raise UserError(
            f"moe.num_experts={moe.num_experts} cannot be shared out evenly among "
            f"moe.ensemble_size={moe.ensemble_size} members; fix: make it a multiple"
        )


def _validate_router(router: RouterConfig, num_experts: int, members: int) -> None:
    if ":" not in router.name:  # a router of the user's own is looked for when it is needed
        _one_of("moe.router.name", router.name, ROUTERS)
    _at_least_one("moe.router.k", router.k)
    own = num_experts // members
    if router.k > own:
        what = "moe.num_experts" if members == 1 else "moe.num_experts / moe.ensemble_size"
        raise UserError(f"moe.router.k={router.k} is more than {what}={own}; fix: pick k <= {own}")
    for name in ("capacity_factor", "eval_capacity_factor"):
        factor = getattr(router, name)
        if factor is not None:
            _positive(f"moe.router.{name}", factor)
    for name in ("noise_std", "capacity_multiple_of", "bias_update_rate", *_LOSS_WEIGHTS):
        if not getattr(router, name) >= 0:
            raise UserError(
                f"moe.router.{name}={getattr(router, name)} is negative; fix: 0 turns it off"
            )


_LOSS_WEIGHTS = ("importance_loss_weight", "load_loss_weight", "gshard_loss_weight")


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}={value!r} must be a whole number; fix: give 1 or more")


def _positive(name: str, factor: float) -> None:
    if not 0 < factor < math.inf:
        raise UserError(f"{name}={factor} must be positive; fix: 1.0 is even load")


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(layers)))


def _rate(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name}={value} is no dropout rate; fix: 0 <= {name} < 1")


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    known = tuple(known)
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f'did you mean "{close[0]}"? ' if close else ""
        raise UserError(f'{name}="{value}" is unknown; fix: {hint}use one of {", ".join(known)}')
