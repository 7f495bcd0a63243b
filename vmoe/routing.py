"""The router of a config: which of moegen's it is, its settings, and its parameters by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import moegen
from moegen import experts, routers
from moegen.errors import MoegenError
from vmoe.errors import UserError
from vmoe.layers.params import Params, draw_kernel, lecun_normal
from vmoe.model_config import MoEConfig, RouterConfig

FIELDS = {
    "k": "k",
    "noise_std": "noise_std",
    "capacity_factor": "capacity_factor",
    "multiple_of": "capacity_multiple_of",
    "batch_priority": "batch_priority",
    "dropless": "dropless",
    "importance_loss_weight": "importance_loss_weight",
    "load_loss_weight": "load_loss_weight",
    "gshard_loss_weight": "gshard_loss_weight",
}
"""moegen's name of a setting and the field of RouterConfig that it comes from."""


def router_of(config: RouterConfig) -> moegen.Router:
    """The router by name, unbound: one of moegen's, or of a file or module of the user's.

    Raises:
      UserError: if there is none of that name.
    """
    return _found(config.name)


@functools.cache
def _found(name: str) -> moegen.Router:
    """Cached, since a file that is read again declares another router."""
    try:
        return moegen.find(name, moegen.Router, routers)
    except MoegenError as error:
        raise UserError(f"moe.router.name: {error.what}; fix: {error.fix}") from error


def bound_router(config: RouterConfig, train: bool) -> moegen.Router:
    """The router with the settings of the config, for training or evaluation.

    Raises:
      UserError: for a field that was changed and that this router does not have, or a setting
        of a name that it does not know.
    """
    router = router_of(config)
    known, default = dict(router.settings), RouterConfig(name=config.name)
    chosen: dict[str, Any] = {}
    for setting, field in FIELDS.items():
        value = getattr(config, field)
        if setting in known:
            chosen[setting] = value
        elif value != getattr(default, field):
            raise _meaningless(config, field)
    if config.name != "loss_free" and config.bias_update_rate != default.bias_update_rate:
        raise _meaningless(config, "bias_update_rate")
    if not train and config.eval_capacity_factor is not None and "capacity_factor" in known:
        chosen["capacity_factor"] = config.eval_capacity_factor
    if "multiple_of" in chosen:
        chosen["multiple_of"] = chosen["multiple_of"] or None
    try:
        return router.bind(**chosen | dict(config.settings))  # type: ignore[no-any-return]
    except MoegenError as error:
        raise UserError(f"moe.router.settings: {error.what}; fix: {error.fix}") from None


def check_router(config: RouterConfig) -> None:
    """Whether a run can train and evaluate with the router; before anything is written.

    Raises:
      UserError: as `bound_router`, or if it takes no mask: a test set's last batch is padded.
    """
    for train in (True, False):
        bound_router(config, train)
    require_mask(config)


def check_scope(config: MoEConfig, batches: Mapping[str, int], parts: int) -> None:
    """Whether buffers that all routing groups share fit devices that have `parts` of the images.

    Args:
      config: of the MoE blocks.
      batches: images that are routed at once, by the field that says how many.
      parts: of the images on the mesh.

    Raises:
      UserError: if groups would be filled up on some devices: these would take places.
    """
    if dict(config.router.settings).get("scope", "group") == "group":
        return
    for field, images in batches.items():
        if images % (config.group_images * parts):
            raise UserError(
                f"{field} routes {images} images at once, which are no {parts} equal parts of "
                f"groups of model.moe.group_images={config.group_images}, as "
                'moe.router.settings=(("scope", "batch"),) needs on this mesh; fix: a multiple of '
                f"{config.group_images * parts}"
            )


def require_mask(config: RouterConfig) -> None:
    """Raises UserError if padding images would take places in the router's buffers."""
    if not takes_input(config, "mask"):
        raise UserError(
            f'the router "{config.name}" has no input mask, so that padding images would take '
            'places in its buffers; fix: give it mask: moegen.bool_["S"] = None'
        )


def _meaningless(config: RouterConfig, field: str) -> UserError:
    return UserError(
        f"moe.router.{field}={getattr(config, field)!r} means nothing to the router "
        f'"{config.name}"; fix: leave it out'
    )


def has_setting(config: RouterConfig, *names: str) -> bool:
    """Whether the router has all of these settings, such as capacity_factor."""
    return set(names) <= set(dict(router_of(config).settings))


def takes_input(config: RouterConfig, name: str) -> bool:
    """Whether the router takes a per-token input of that name, such as ids."""
    return any(a.name == name and a.role == "input" for a in router_of(config).arguments)


def init_router(key: jax.Array, config: MoEConfig, width: int) -> Params:
    """Draws the router's parameters: w as dense/kernel, as released, others by their own name.

    Raises:
      UserError: if the size of one of its dims is not known.
    """
    params: Params = {}
    names = [a.name for a in router_of(config.router).params]
    if "w" in names:
        members = config.ensemble_size
        outputs: tuple[int, ...] = (config.num_experts,)
        if config.router.name == "ensemble":
            outputs = (members, config.num_experts // members)
        elif config.router.name == "shared_experts":
            outputs = (_dims(config)["R"],)
        params["dense"] = {"kernel": draw_kernel(lecun_normal, key, (width,), outputs)}
    others = [n for n in names if n != "w"]
    if others:
        made = _declared_draw(key, config, width)
        params |= {name: made[name] for name in others}
    return params


def router_arrays(params: Params) -> dict[str, jax.Array]:
    """The parameters as the moegen router names them."""
    own = {name: value for name, value in params.items() if name != "dense"}
    return own | ({"w": params["dense"]["kernel"]} if "dense" in params else {})


def _declared_draw(key: jax.Array, config: MoEConfig, width: int) -> Params:
    """All parameters of the router by the initialisers that it declares."""
    layer = moegen.compile(router_of(config.router), experts.mlp)
    x = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
    dims = _dims(config)
    try:
        made = layer.init(key, x, experts=config.num_experts, hidden=1, **dims)
    except MoegenError as error:
        raise UserError(
            f'router "{config.router.name}": {error.what}; fix: give the size of the dim, for '
            'example moe.router.dims=(("C", 1),)'
        ) from None
    return made["router"]  # type: ignore[no-any-return]


def _dims(config: MoEConfig) -> dict[str, int]:
    """Sizes of the router's own dims: those that follow from the config, and those given."""
    shared = dict(config.router.settings).get("shared", 1)
    members = config.ensemble_size
    follow = {"M": members, "Q": config.num_experts // members, "R": config.num_experts - shared}
    return follow | dict(config.router.dims)
