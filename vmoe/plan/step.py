"""A training step as shapes and places: nothing is allocated, whatever the size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh

from vmoe.config import TrainConfig
from vmoe.sharding import MeshAxes, batch_place, state_places
from vmoe.state import TrainState, init_state


def abstract_mesh(axes: MeshAxes) -> AbstractMesh:
    """A mesh of devices that need not exist."""
    sizes, names = tuple(size for _, size in axes), tuple(name for name, _ in axes)
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(axes))


def state_shapes(config: TrainConfig, image: tuple[int, int, int]) -> TrainState:
    """The training state as shapes."""
    return jax.eval_shape(lambda: init_state(config, image))


def placed_state(state: TrainState, mesh: Mesh) -> TrainState:
    """The shapes of a state with every array where `vmoe train` has it."""
    return jax.tree.map(_placed, state, state_places(mesh, state))


def batch_shapes(config: TrainConfig, image: tuple[int, int, int], mesh: Mesh) -> dict[str, Any]:
    """A batch as shapes, where `vmoe train` has it."""
    images = config.data.batch_size
    shapes = {
        "images": jax.ShapeDtypeStruct((images, *image), jnp.float32),
        "labels": jax.ShapeDtypeStruct((images,), jnp.int32),
    }
    return {name: _placed(shape, batch_place(mesh)) for name, shape in shapes.items()}


def bytes_on_a_device(state: TrainState, mesh: AbstractMesh) -> int:
    """What one device holds of the state."""
    places = state_places(mesh, state)
    sizes = jax.tree.map(
        lambda leaf, place: _bytes(place.shard_shape(leaf.shape), leaf.dtype), state, places
    )
    return sum(jax.tree.leaves(sizes))


def _bytes(shape: tuple[int, ...], dtype: Any) -> int:
    count = 1
    for size in shape:
        count *= size
    return count * jnp.dtype(dtype).itemsize


def _placed(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
