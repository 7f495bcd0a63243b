"""Several devices: the mesh of a run, where its arrays are, and how MoE layers come to know of it.

Experts' weights and the moments of their optimiser are split as the mesh's axes say; all else is
on every device. Batches are split by images. The step is one program for all devices: what moegen
does not exchange itself, in the MoE layers, XLA does.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
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
      UserError: if there are fewer devices, or some of another process would have nothing to do.
    """
    if not axes:
        return None
    wanted, there = math.prod(size for _, size in axes), jax.devices()
    if wanted != len(there) and jax.process_count() > 1:
        raise UserError(
            f"mesh={axes} has {wanted} devices, the {jax.process_count()} processes have "
            f"{len(there)}; fix: a mesh of all of them, or none, for one axis data of all"
        )
    if wanted > len(there):
        raise UserError(
            f"mesh={axes} needs {wanted} devices, there are {len(there)}; fix: a smaller mesh, or "
            f"on a CPU XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        )
    return mesh_of(axes, there[:wanted])


def mesh_of(axes: MeshAxes, devices: Sequence[Any]) -> Mesh:
    """A mesh of just these devices; of TPUs, every axis gets neighbours on the torus."""
    sizes = [size for _, size in axes]
    if devices[0].platform == "tpu":
        array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        array = np.array(devices).reshape(sizes)
    return Mesh(array, [name for name, _ in axes], axis_types=(AxisType.Auto,) * len(axes))


def spanning(axes: MeshAxes) -> MeshAxes:
    """The axes; where several processes were given none, one that shares out the images to all."""
    return axes if axes or jax.process_count() == 1 else (("data", jax.device_count()),)


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


def image_parts(mesh: Mesh | None) -> int:
    """How many parts a mesh cuts a batch into."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in _image_axes(mesh))


@functools.cache
def own_images(mesh: Mesh | None, images: int) -> np.ndarray:
    """The images of a batch, i64 by their places in it, that devices of this process hold.

    Raises:
      UserError: if the images have no equal parts.
    """
    if mesh is None:
        return np.arange(images)
    if images % image_parts(mesh):
        axes, parts = ", ".join(_image_axes(mesh)), image_parts(mesh)
        raise UserError(
            f"a batch of {images} images has no {parts} equal parts for the mesh axes {axes}; "
            f"fix: data.batch_size={-(-images // parts) * parts}"
        )
    parts_here = batch_place(mesh).addressable_devices_indices_map((images,)).values()
    return np.unique(np.concatenate([np.arange(images)[part] for (part,) in parts_here]))


def place_batch(
    mesh: Mesh | None, batch: dict[str, Any], images: int | None = None
) -> dict[str, Any]:
    """A batch with every device's images on it.

    Args:
      mesh: of the run.
      batch: arrays with the `own_images` of this process first.
      images: of the batch on all processes together; None: there is one process.

    Raises:
      UserError: as `own_images`.
    """
    if mesh is None:
        return batch
    images = len(next(iter(batch.values()))) if images is None else images
    own, place = own_images(mesh, images), batch_place(mesh)

    def placed(array: Any) -> jax.Array:
        def part(index: tuple[slice, ...]) -> Any:
            start, stop, _ = index[0].indices(images)
            first = int(np.searchsorted(own, start))  # a device's images are all here, in a row
            return array[first : first + stop - start]

        return jax.make_array_from_callback((images, *array.shape[1:]), place, part)

    return {name: placed(np.asarray(array)) for name, array in batch.items()}


def place_state(mesh: Mesh | None, state: Any) -> Any:
    """Every array of a training state where the mesh wants it."""
    if mesh is None:
        return state
    return jax.tree.map(_place, state, state_places(mesh, state))


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """Within a compiled function: every device, so every process, has all of the results."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


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


def _image_axes(mesh: Mesh) -> tuple[str, ...]:
    return tuple(axis for axis in IMAGE_AXES if axis in mesh.axis_names)


def batch_place(mesh: Mesh) -> NamedSharding:
    """Where the arrays of a batch are: split by images."""
    return NamedSharding(mesh, PartitionSpec(_image_axes(mesh)))


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
