"""Several devices: the mesh of a run, where its arrays are, and how MoE layers come to know of it.

Experts' weights and the moments of their optimiser are split as the mesh's axes say; all else is
on every device. Batches are split by images. The step is one program for all devices: what moegen
does not exchange itself, in the MoE layers, XLA does.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vmoe.errors import UserError

AXES = ("data", "fsdp", "expert", "model")
"""Axes a mesh can have, as moegen.Schedule knows them."""
IMAGE_AXES = ("data", "fsdp", "expert")
"""Axes that share out the images."""
EXPERT_ARRAYS = {
    ("Dense_0", "kernel"): ("expert", "fsdp", "model"),
    ("Dense_0", "bias"): ("expert", "model"),
    ("Dense_1", "kernel"): ("expert", "model", "fsdp"),
    ("Dense_1", "bias"): ("expert", "fsdp"),
}
"""The axis of each dim of an expert's arrays: [E, D, F], [E, F], [E, F, D], [E, D]."""

MeshAxes = tuple[tuple[str, int], ...]
_MESH: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


@functools.cache
def make_mesh(axes: MeshAxes) -> Mesh | None:
    """The mesh of a run, of the first devices there are; None for no axes.

    Raises:
      UserError: if there are fewer devices.
    """
    if not axes:
        return None
    wanted, there = math.prod(size for _, size in axes), jax.devices()
    if wanted > len(there):
        raise UserError(
            f"mesh={axes} needs {wanted} devices, there are {len(there)}; fix: a smaller mesh, or "
            f"on a CPU XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        )
    devices = np.array(there[:wanted]).reshape([size for _, size in axes])
    return Mesh(devices, [name for name, _ in axes], axis_types=(AxisType.Auto,) * len(axes))


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Layers that are traced within this context run on the mesh."""
    before = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(before)


def current_mesh() -> Mesh | None:
    """The mesh of the innermost `on_mesh`."""
    return _MESH.get()


def place_batch(mesh: Mesh | None, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with every device's images on it.

    Raises:
      UserError: if the images have no equal parts.
    """
    if mesh is None:
        return batch
    axes = tuple(axis for axis in IMAGE_AXES if axis in mesh.axis_names)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    images = len(next(iter(batch.values())))
    if images % parts:
        raise UserError(
            f"a batch of {images} images has no {parts} equal parts for the mesh axes "
            f"{', '.join(axes)}; fix: data.batch_size={-(-images // parts) * parts}"
        )
    place = NamedSharding(mesh, PartitionSpec(axes))
    return {name: _place(array, place) for name, array in batch.items()}


def place_state(mesh: Mesh | None, state: Any) -> Any:
    """Every array of a training state where the mesh wants it."""
    if mesh is None:
        return state
    return jax.tree.map(_place, state, state_places(mesh, state))


def keep_places(mesh: Mesh | None, state: Any) -> Any:
    """Within a compiled step: the new state is where the old one was."""
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_places(mesh, state))


def state_places(mesh: Mesh, state: Any) -> Any:
    """The sharding of every array, by its path: the optimiser's have the names of the weights."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(mesh, path, leaf)), state
    )


def _spec(mesh: Mesh, path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    names = tuple(str(getattr(k, "key", getattr(k, "name", ""))) for k in path)
    axes = EXPERT_ARRAYS.get(names[-2:])
    # Factored moments have fewer dims than their weights.
    if axes is None or names[-4:-2] != ("Moe", "Mlp") or len(axes) != leaf.ndim:
        return PartitionSpec()
    shape = dict(zip(axes, leaf.shape, strict=True))
    even = {a for a in axes if a in mesh.axis_names and shape[a] % mesh.shape[a] == 0}
    return PartitionSpec(*(axis if axis in even else None for axis in axes))


def _place(array: Any, place: NamedSharding) -> jax.Array:
    """The array on all devices of a sharding; every process has all of it and gives its parts."""
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])
