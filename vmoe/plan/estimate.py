"""The analytic plan: work, memory and exchange of one device, and the time they take at best.

MoE layers are counted in the program that moegen makes of them for the mesh, all else by formula
(`vmoe.plan.dense`). Rates are the chip's peaks, the exchange overlaps with nothing: times compare
meshes, and are no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from moegen import plan
from vmoe.config import TrainConfig
from vmoe.moe import compiled_layer
from vmoe.plan import dense
from vmoe.plan.asked import Asked
from vmoe.plan.step import abstract_mesh, bytes_on_a_device, state_shapes
from vmoe.sharding import IMAGE_AXES, MeshAxes


@dataclass(frozen=True)
class Work:
    """What one device does in a step.

    Attributes:
      flops: of products.
      bytes: of HBM, read and written.
      collectives: what it puts into each.
    """

    flops: float
    bytes: float
    collectives: tuple[plan.Collective, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.collectives + other.collectives,
        )


@dataclass(frozen=True)
class Estimate:
    """A mesh and what a step takes on it.

    Attributes:
      mesh: its axes.
      work: of one device.
      state: bytes of weights and optimiser on a device.
      held: bytes of all it holds at once.
      seconds: by what takes them: "compute", "HBM", and each mesh axis, "expert" or "data+expert".
    """

    mesh: MeshAxes
    work: Work
    state: int
    held: float
    seconds: dict[str, float]

    @property
    def step(self) -> float:
        """Seconds of a step: products or memory, whatever is longer, and then the exchange."""
        chip = ("compute", "HBM")
        exchange = sum(s for what, s in self.seconds.items() if what not in chip)
        return max(self.seconds[what] for what in chip) + exchange

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=lambda what: self.seconds[what])


def estimate(wanted: Asked) -> Estimate:
    """The plan of a mesh without compiling it."""
    config, mesh = wanted.config, wanted.config.mesh
    state = _state(_sizes_only(config), wanted.image)
    own = bytes_on_a_device(state, abstract_mesh(mesh))
    work = _dense_work(wanted, state) + _moe_work(wanted)
    work += Work(0.0, 3.0 * own)  # weights and moments are read, and written, gradients read
    images = config.data.batch_size / _parts(mesh) / config.microbatches
    gradients = own * _share_of_weights(state)
    held = own + gradients + images * dense.kept_bytes(config.model, wanted.image)
    return Estimate(mesh, work, own, held, seconds(work, wanted))


def seconds(work: Work, wanted: Asked) -> dict[str, float]:
    """Of a step, by what takes them, at the chip's peak rates."""
    target, boxes = wanted.topology.target, _boxes(wanted.topology, wanted.config.mesh)
    rate = target.rate("bf16" if wanted.config.model.dtype == "bfloat16" else "f32")
    found = {"compute": work.flops / rate, "HBM": work.bytes / target.bytes}
    for one in work.collectives:
        box = plan.joined([boxes[axis] for axis in one.axes])
        each = plan.seconds(one.kind, one.nbytes, box, wanted.topology.network)
        name = "+".join(one.axes)
        found[name] = found.get(name, 0.0) + one.times * each
    return found


def others(wanted: Asked) -> Iterable[MeshAxes]:
    """Meshes of the same devices that the model can be spread over."""
    model, devices = wanted.config.model, wanted.topology.devices
    experts = model.moe.num_experts if model.moe else 1
    width, hidden = model.width, (model.moe and model.moe.mlp_dim) or model.mlp_dim
    for expert in _divisors(math.gcd(experts, devices)):
        for fsdp, tensor in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4)):
            rest, left = divmod(devices, expert * fsdp * tensor)
            if left or width % fsdp or hidden % tensor:
                continue
            sizes = {"data": rest, "fsdp": fsdp, "expert": expert, "model": tensor}
            mesh = tuple((axis, size) for axis, size in sizes.items() if size > 1)
            if (
                mesh
                and wanted.config.data.batch_size % (_parts(mesh) * wanted.config.microbatches) == 0
            ):
                yield mesh


def _dense_work(wanted: Asked, state: Any) -> Work:
    config, mesh = wanted.config, wanted.config.mesh
    images = config.data.batch_size / _parts(mesh)
    flops = images * dense.step_flops(config.model, wanted.image)
    traffic = images * dense.traffic_bytes(config.model, wanted.image)
    axes = tuple(axis for axis, size in mesh if axis in IMAGE_AXES and size > 1)
    if not axes:
        return Work(flops, traffic)
    summed = _gradient_bytes(state.params, 2 if config.model.dtype == "bfloat16" else 4)
    one = plan.Collective("all_reduce", axes, _parts(mesh), summed, config.microbatches)
    return Work(flops, traffic, (one,))


def _moe_work(wanted: Asked) -> Work:
    """Of all MoE layers: the program's forward and backward, and its forward again."""
    config, mesh = wanted.config, wanted.config.mesh
    moe = config.model.moe
    if moe is None:
        return Work(0.0, 0.0)
    lowered = _lowered(_sizes_only(config), mesh, wanted.image, wanted.topology.target.name)
    times = len(moe.layers) * config.microbatches
    passes = [False, *([True] if config.model.remat == "full" else [])]
    work = Work(0.0, 0.0)
    for forward in passes:
        cost = lowered.cost(forward=forward)
        moved = tuple(replace(one, times=times) for one in lowered.collectives(forward=forward))
        work += Work(cost.flops * times, cost.bytes * times, moved)
    return work


@cache
def _lowered(config: TrainConfig, mesh: MeshAxes, image: tuple[int, int, int], target: str) -> Any:
    """The moegen layer of one microbatch, for the mesh."""
    model = config.model
    assert model.moe is not None
    moe = model.moe
    per_group = moe.group_images * dense.tokens(model, image) * moe.ensemble_size
    groups = config.data.batch_size // config.microbatches // moe.group_images
    x = jax.ShapeDtypeStruct((groups, per_group, model.width), jnp.dtype(model.dtype))
    layer = compiled_layer(moe, True, abstract_mesh(mesh), target)
    sizes = {"experts": moe.num_experts, "hidden": moe.mlp_dim or model.mlp_dim}
    return layer.lower(x, key=jax.random.key(0), **sizes, **dict(moe.router.dims))


@cache
def _state(config: TrainConfig, image: tuple[int, int, int]) -> Any:
    return state_shapes(config, image)


@cache
def _boxes(topology: plan.Topology, mesh: MeshAxes) -> dict[str, plan.Box]:
    return plan.boxes(topology, mesh)


def _sizes_only(config: TrainConfig) -> TrainConfig:
    """The config without its mesh, of which no array's size depends."""
    return replace(config, mesh=())


def _gradient_bytes(params: Any, itemsize: int) -> int:
    """Of all weights but the experts'; the classifier's gradients are float32."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(key, "key", key)) for key in path]
        if "Moe" not in names:
            total += math.prod(leaf.shape) * (4 if names[0] == "head" else itemsize)
    return total


def _share_of_weights(state: Any) -> float:
    sizes = [
        sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
        for tree in (state.params, state)
    ]
    return sizes[0] / sizes[1]


def _parts(mesh: MeshAxes) -> int:
    """Devices that share out the images."""
    return math.prod(size for axis, size in mesh if axis in IMAGE_AXES)


def _divisors(n: int) -> Sequence[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
