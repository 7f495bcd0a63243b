"""The MoE block: tokens in routing groups, through a layer that moegen generates."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

import moegen
from moegen import experts
from vmoe.errors import UserError
from vmoe.layers.mlp import init_mlp
from vmoe.layers.params import Params, named_key
from vmoe.model_config import MoEConfig
from vmoe.routing import bound_router, init_router, require_mask, router_arrays, takes_input
from vmoe.sharding import current_mesh

Aux = dict[str, jax.Array]
"""What a router reports, each with the group dim first: losses, load, asked, dropped."""
_TARGET: ContextVar[str | None] = ContextVar("target", default=None)


@contextlib.contextmanager
def lowered_for(target: str) -> Iterator[None]:
    """Layers that are traced within this context may leave this machine.

    They run on any device of that kind, or JAX platform: no code is compiled for this processor.
    """
    before = _TARGET.set(target)
    try:
        yield
    finally:
        _TARGET.reset(before)


def init_moe(key: jax.Array, config: MoEConfig, width: int, mlp_dim: int) -> Params:
    """Returns Router (mostly dense/kernel [D, E]) and Mlp/Dense_{0,1} with a leading expert dim.

    The kernel of the ensemble router is [D, M, E / M]; see `init_router`.

    Every expert is drawn with its own seed. The released system draws all with one seed unless
    told to split it, so that its experts start identical; ours never do.
    """
    expert_keys = jax.random.split(named_key(key, "Mlp"), config.num_experts)
    return {
        "Router": init_router(named_key(key, "Router"), config, width),
        "Mlp": jax.vmap(lambda k: init_mlp(k, width, mlp_dim))(expert_keys),
    }


def moe_block(
    config: MoEConfig,
    params: Params,
    x: jax.Array,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    inputs: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, Aux]:
    """Routes tokens x [B, T, D] among the experts, in groups of group_images images.

    Args:
      config: experts and router.
      params: from `init_moe`.
      x: tokens, f32 or bf16; the router computes in f32. In an ensemble, M rows of the batch
        in a row are one image's, one for each member.
      train: training capacity, noise and dropout.
      key: for noise and dropout; only used in training.
      mask: bool[B], False for padding images, which take no place in any buffer.
      inputs: further inputs of the router, such as a recorded noise f32[G, S, E], for the
        tokens as `group_tokens` orders them.

    Returns:
      y [B, T, D] (0 for tokens without a place), and the router's report per group.

    Raises:
      UserError: if the batch is not a whole number of groups.
    """
    layer = compiled_layer(config, train, current_mesh(), _TARGET.get())
    weights = _layer_params(params, x.dtype)
    y, aux = route_through(
        layer, weights, config, x, key=key if train else None, mask=mask, inputs=inputs
    )
    # Routers without a loss of their own add nothing to the training loss.
    groups = x.shape[0] // (config.ensemble_size * config.group_images)
    aux.setdefault("auxiliary_loss", jnp.zeros((groups,), jnp.float32))
    return y, aux


def route_through(
    layer: Any,
    weights: Params,
    config: MoEConfig,
    x: jax.Array,
    *,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    inputs: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, Aux]:
    """Calls a moegen layer on tokens x [B, T, D]; returns y [B, T, ...] and the report.

    Other arguments as for `moe_block`; `weights` are the layer's own.
    """
    batch, tokens, _ = x.shape
    members = config.ensemble_size
    groups = group_count(batch // members, config.group_images)
    given = {name: value for name, value in (inputs or {}).items() if value is not None}
    if mask is not None:
        require_mask(config.router)
        per_token = jnp.broadcast_to(mask[:, None], (batch, tokens))
        given["mask"] = group_tokens(per_token, groups, members)
    if takes_input(config.router, "ids"):  # an image's patches are known by their positions
        ids = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (batch, tokens))
        given.setdefault("ids", group_tokens(ids, groups, members))
    y, aux = layer(weights, group_tokens(x, groups, members), key=key, **given)
    return ungroup_tokens(y, (batch, tokens, *y.shape[2:]), members), aux


def group_tokens(x: jax.Array, groups: int, members: int) -> jax.Array:
    """[B, T, ...] as [G, S, ...]; of an ensemble, the members' copies of a token stand together.

    Position s of a group is then of member s mod M, as the ensemble router has it.
    """
    batch, tokens, *rest = x.shape
    by_member = x.reshape(batch // members, members, tokens, *rest)
    return jnp.swapaxes(by_member, 1, 2).reshape(groups, -1, *rest)


def ungroup_tokens(x: jax.Array, shape: tuple[int, ...], members: int) -> jax.Array:
    """The inverse of `group_tokens`, back to shape [B, T, ...]."""
    batch, tokens, *rest = shape
    by_member = x.reshape(batch // members, tokens, members, *rest)
    return jnp.swapaxes(by_member, 1, 2).reshape(shape)


def group_count(batch: int, group_images: int) -> int:
    """Routing groups in a batch.

    Raises:
      UserError: if the batch is not a whole number of groups.
    """
    if batch == 0 or batch % group_images:
        padded = max(1, -(-batch // group_images)) * group_images
        raise UserError(
            f"a batch of {batch} images is not a whole number of groups of "
            f"moe.group_images={group_images}; fix: pad it to {padded} images with mask=False for "
            f"the padding, or choose a group_images that divides {batch}"
        )
    return batch // group_images


@functools.cache
def compiled_layer(
    config: MoEConfig,
    train: bool,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
    target: str | None = None,
) -> Any:
    """The moegen layer of a config: one object for all its blocks, so each shape compiles once."""
    return moegen.compile(
        bound_router(config.router, train),
        experts.mlp.bind(dropout=config.dropout if train else 0.0),
        schedule=schedule(config, mesh, target),
    )


def schedule(
    config: MoEConfig,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
    target: str | None = None,
) -> moegen.Schedule:
    """How moegen is asked to lower a config's layers.

    Without a mesh that shares experts out nothing is exchanged: the same run may be evaluated on
    one device, and there `overlap` has no meaning.
    """
    lowering = config.lowering
    exchanges = mesh is not None and mesh.shape.get("expert", 1) > 1
    return moegen.Schedule(
        format=config.format,
        save=lowering.save,
        exchange=lowering.exchange,
        overlap=lowering.overlap if exchanges else 1,
        mesh=mesh,
        target=target,
    )


def _layer_params(params: Params, dtype: jnp.dtype) -> Params:
    """Renames the tree for moegen; the experts compute in `dtype`, the router in f32."""
    first, second = params["Mlp"]["Dense_0"], params["Mlp"]["Dense_1"]
    expert = {
        "w1": first["kernel"],
        "b1": first["bias"],
        "w2": second["kernel"],
        "b2": second["bias"],
    }
    return {
        "router": router_arrays(params["Router"]),
        "expert": {name: weight.astype(dtype) for name, weight in expert.items()},
    }
