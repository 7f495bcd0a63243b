"""Choices that are made when a trained model is used: no weight changes with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe import model
from vmoe.encoder import Inputs
from vmoe.errors import UserError
from vmoe.layers.patches import patch_grid
from vmoe.model_config import ModelConfig, MoEConfig
from vmoe.routing import has_setting, takes_input


@dataclass(frozen=True)
class Choices:
    """How a trained sparse model is used; None leaves a choice as the model was trained.

    Attributes:
      k: experts per token.
      capacity: factor for the buffers of all MoE blocks, or one per block, in order.
      batch_priority: whether the largest gate is served first (BPR), or tokens in order.
      dropless: no capacity at all.
      budget: the share of the tokens, those with the largest gates, that the experts serve;
        dropless unless a capacity is given. A run-time value: every budget is one program.
      skip: the share of the tokens, those with the smallest gates, that are dropped outright;
        the others are served by batch priority (skip-patch routing). A run-time value too.
      independent: each image is its own routing group and is computed by itself, so that a
        prediction does not depend on the other images of the batch, bit for bit.

    Source: arXiv:2106.05974, section 4 and appendix (batch priority, skip-patch).
    """

    k: int | None = None
    capacity: float | tuple[float, ...] | None = None
    batch_priority: bool | None = None
    dropless: bool = False
    budget: float | None = None
    skip: float | None = None
    independent: bool = False

    @property
    def served(self) -> np.float32 | None:
        """The run-time value: the share of the tokens that may be served; None where all may."""
        if self.skip is not None:
            return np.float32(1.0 - self.skip)
        return None if self.budget is None else np.float32(self.budget)

    @property
    def program(self) -> Choices:
        """The choices without the run-time value: those that are equal share one program."""
        return replace(
            self,
            budget=None if self.budget is None else 1.0,
            skip=None if self.skip is None else 0.0,
        )

    def __str__(self) -> str:
        """For people: "k=1, capacity 0.5, batch priority"; "as trained" where nothing is chosen."""
        order = {None: "", True: "batch priority", False: "token order"}[self.batch_priority]
        parts = (
            f"k={self.k}" if self.k is not None else "",
            f"capacity {_shown(self.capacity)}" if self.capacity is not None else "",
            order,
            "dropless" if self.dropless else "",
            f"budget {self.budget:g}" if self.budget is not None else "",
            f"skip {self.skip:g}" if self.skip is not None else "",
            "each image by itself" if self.independent else "",
        )
        return ", ".join(part for part in parts if part) or "as trained"


AS_TRAINED = Choices()


def chosen_model(config: ModelConfig, choices: Choices) -> ModelConfig:
    """The config of the model as it is used with the choices; the weights fit both.

    Raises:
      UserError: names the choice that this model cannot follow, and the fix.
    """
    if config.moe is None:
        if choices != replace(AS_TRAINED, independent=choices.independent):
            raise UserError(
                f"a dense model has nothing to choose ({choices}); fix: leave the flags out"
            )
        return config
    _check(config.moe, choices)
    return replace(config, moe=_chosen_moe(config.moe, choices)).validate()


def predict(
    config: ModelConfig,
    params: Any,
    images: Any,
    choices: Choices = AS_TRAINED,
    *,
    mask: Any = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Logits and metrics as `vmoe.model.apply` returns them, with the choices.

    Compiled once per shape and `choices.program`. Of independent images, the group dim of the
    metrics is the images' own.

    Args:
      config: of the model as trained.
      params: its weights.
      images: f32[B, H, W, channels]; for a sparse model a whole number of groups, any number of
        independent images.
      choices: see there.
      mask: bool[B], False for padding images.

    Raises:
      UserError: as `chosen_model`, and if the images do not fit.
    """
    return _predict(config, choices.program, params, images, mask, choices.served)


def run(
    config: ModelConfig,
    choices: Choices,
    params: Any,
    images: jax.Array,
    mask: jax.Array | None = None,
    served: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """`predict` for use inside jit: `served` f32[] is the run-time value of the choices."""
    chosen = chosen_model(config, choices)
    if not choices.independent:
        return _run(chosen, params, images, mask, served)

    def one(arrays: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, dict[str, Any]]:
        image, here = jax.tree.map(lambda a: a[None], arrays)
        return _run(chosen, params, image, here, served)

    # A product of more rows may add in another order, so that even a group of its own is not
    # enough: in a loop every image goes through the same program of one image.
    logits, metrics = jax.lax.map(one, (images, mask))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (logits, metrics))


_predict = jax.jit(run, static_argnums=(0, 1))


def _run(
    config: ModelConfig,
    params: Any,
    images: jax.Array,
    mask: jax.Array | None,
    served: jax.Array | None,
) -> tuple[jax.Array, dict[str, Any]]:
    inputs = router_inputs(config, images, mask, served)
    per_block = [inputs] * len(config.moe.layers) if inputs and config.moe else None
    return model.apply(config, params, images, mask=mask, moe_inputs=per_block)


def router_inputs(
    config: ModelConfig, images: jax.Array, mask: jax.Array | None, served: jax.Array | None
) -> Inputs:
    """The run-time value as every MoE block takes it: budget f32[G, S], a share of the tokens.

    Padding images have no share in it.
    """
    moe = config.moe
    if served is None or moe is None:
        return {}
    rows, columns = patch_grid(*images.shape[1:3], config.patch_size)
    tokens = (rows * columns + (config.head == "token")) * moe.group_images
    groups = len(images) // moe.group_images
    real = jnp.ones((groups,)) if mask is None else mask.reshape(groups, -1).mean(axis=1)
    share = (served * real).astype(jnp.float32)
    return {"budget": jnp.broadcast_to(share[:, None], (groups, tokens))}


def _chosen_moe(moe: MoEConfig, choices: Choices) -> MoEConfig:
    changes: dict[str, Any] = {}
    if choices.k is not None:
        changes["k"] = choices.k
    if choices.capacity is not None:
        changes |= {"dropless": False}
    if choices.batch_priority is not None or choices.skip is not None:
        changes["batch_priority"] = choices.batch_priority is not False
    if choices.dropless or (choices.budget is not None and choices.capacity is None):
        changes["dropless"] = True
    per_block = moe.eval_capacity_factors
    if isinstance(choices.capacity, tuple):
        per_block = choices.capacity
    elif choices.capacity is not None:
        per_block = ()
        changes["eval_capacity_factor"] = choices.capacity
    return replace(
        moe,
        router=replace(moe.router, **changes),
        eval_capacity_factors=per_block,
        group_images=1 if choices.independent else moe.group_images,
    )


def _check(moe: MoEConfig, choices: Choices) -> None:
    """Refuses choices that exclude each other, or mean nothing to the router."""
    for one, other in (
        ("dropless", "capacity"), ("budget", "skip"), ("dropless", "skip"),
    ):  # fmt: skip
        if _given(choices, one) and _given(choices, other):
            raise UserError(f"--{one} and --{other} exclude each other; fix: give one of them")
    if choices.skip is not None and choices.batch_priority is False:
        raise UserError("--skip serves by batch priority; fix: leave --nobpr out")
    for name in ("budget", "skip"):
        share = getattr(choices, name)
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"--{name}={share:g} is no share of the tokens; fix: 0 to 1")
    for name, setting in (
        ("k", "k"), ("capacity", "capacity_factor"), ("batch_priority", "batch_priority"),
        ("dropless", "dropless"), ("skip", "batch_priority"),
    ):  # fmt: skip
        if _given(choices, name) and not has_setting(moe.router, setting):
            raise UserError(
                f'the router "{moe.router.name}" has no {setting} to choose ({choices}); fix: '
                "leave the flag out"
            )
    if choices.served is not None and not takes_input(moe.router, "budget"):
        raise UserError(
            f'the router "{moe.router.name}" takes no budget; fix: a lower --capacity, or a model '
            'trained with moe.router.name="noisy_top_k"'
        )


def _given(choices: Choices, name: str) -> bool:
    value = getattr(choices, name)
    return value is not None and value is not False


def _shown(capacity: float | tuple[float, ...]) -> str:
    factors = capacity if isinstance(capacity, tuple) else (capacity,)
    return "/".join(f"{factor:g}" for factor in factors)
