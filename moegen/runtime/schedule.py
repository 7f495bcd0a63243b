"""The schedule: everything about how a layer runs, apart from what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from moegen.errors import ScheduleError, did_you_mean
from moegen.passes.choose_format import FORMATS
from moegen.passes.exchange_inside import INSIDE
from moegen.passes.formats.exchanges import EXCHANGES
from moegen.passes.layout import DEFAULT_AXES, MeshAxes, token_axes
from moegen.passes.overlap_ring import RING
from moegen.passes.rematerialize import SAVES
from moegen.passes.send_tokens import SENDS
from moegen.tune.choose import GATHERS, KERNELS
from moegen.tune.target import Target, target_named, target_of


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a layer is lowered; also part of the key of the compilation cache.

    Attributes:
      format: "auto", "onehot", "slots" or "sorted": how routing decisions are stored. "auto" on
        one device chooses twice, for training and for calls without gradients, whose outputs may
        then differ in rounding.
      kernel: "auto", "runs", "blocks", "native", "ragged_dot", "pallas_tpu", "pallas_gpu",
        "pallas_tcgen05" or "pallas_triton": what runs grouped products (sorted format); the last
        three are for GPUs, Hopper, Blackwell and any. "native" is a custom call for CPUs, which a
        C++ compiler on this machine makes once, when a layer first takes it; "auto" may, where no
        target is named and the environment does not have MOEGEN_NATIVE=off.
      gather: "before", "inside" or "auto": whether rows of tokens are gathered before the first
        products of an expert, or by these products' kernel, which then needs no copy of them.
      interpret: kernels that are for another device than the target are run by Pallas's
        interpreter, slowly; without it, to ask for one is an error.
      block: rows that an expert's rows are padded to a multiple of in the sorted format; None:
        about an eighth of an expert's mean load on CPUs, else the target's.
      save: "all" keeps for the backward what it reads; "least" keeps the fewest bytes from which
        that follows without a product, so that activations are computed and rows gathered again.
      exchange: how sorted rows go to experts on other devices: "blocks" as long as the worst case,
        "ragged", just the rows there are, or "auto": ragged where the target has a collective for
        it (TPUs, GPUs).
      tuned: a file that `moegen tune` wrote, asked for kernels and tiles before the table that
        comes with moegen and the heuristics; if it is damaged, lowering a layer raises.
      send: what goes to the devices that share the experts, in the slots format: "rows", each to
        its expert's device, "tokens", all to all of them, or "auto", by the estimated time.
      overlap: in how many chunks slots travel to experts on other devices, each with products of
        its own, so that one can move while another is worked on; "ring": one device's rows after
        the other's, by permutes; "inside": by the kernel of the first product, which sends them
        itself (TPUs); "auto": what the cost model chooses of chunks and the ring.
      target: a name of `moegen.tune.target.TARGETS`, for programs that may leave this machine, or
        None for the devices of the mesh, or the default JAX device.
      mesh: a jax.sharding.Mesh of devices that share the work, or None for one device; an
        AbstractMesh will do to look at programs and sources.
      axes: what each axis of the mesh splits, as a dict such as {"data": "G", "expert": "G E",
        "model": "F"}; axes named so, and "fsdp", which splits "G D", need not be listed. An axis
        that lists G splits the tokens' groups, one that lists E too shares out the experts, any
        other dim splits the experts' arrays.

    Raises:
      ScheduleError: for an unknown value, naming the nearest one.
    """

    format: str = "auto"
    kernel: str = "auto"
    gather: str = "auto"
    block: int | None = None
    save: str = "all"
    exchange: str = "auto"
    tuned: str | None = None
    target: str | None = None
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None
    axes: Mapping[str, str] | tuple[tuple[str, tuple[str, ...]], ...] = ()
    interpret: bool = False
    send: str = "auto"
    overlap: int | str = 1

    def __post_init__(self) -> None:
        _one_of("format", self.format, ("auto", *FORMATS))
        _one_of("kernel", self.kernel, KERNELS)
        _one_of("gather", self.gather, GATHERS)
        _one_of("save", self.save, SAVES)
        _one_of("send", self.send, SENDS)
        _one_of("exchange", self.exchange, ("auto", *EXCHANGES))
        named = self.overlap in ("auto", RING, INSIDE)
        if not named and (isinstance(self.overlap, str) or self.overlap < 1):
            fix = f'1 chunk or more, "{RING}", "{INSIDE}", or "auto"'
            raise ScheduleError(f"overlap={self.overlap!r}", fix=fix)
        if self.block is not None and self.block < 1:
            raise ScheduleError(f"block={self.block}", fix="rows per block are 1 or more")
        if self.target is not None:
            target_named(self.target)
        object.__setattr__(self, "axes", _rules(self.mesh, self.axes))

    def mesh_axes(self) -> MeshAxes | None:
        """The mesh as the passes know it; None for one device."""
        if self.mesh is None:
            return None
        return MeshAxes(tuple(self.mesh.shape.items()), tuple(self.axes))  # type: ignore[arg-type]

    def group_parts(self) -> int:
        """How many equal parts the mesh needs of the groups of tokens."""
        mesh = self.mesh_axes()
        return mesh.devices(token_axes(mesh)) if mesh else 1

    def elsewhere(self) -> str:
        """Why the program may run on another machine than this; empty if it does not."""
        if self.target is not None:
            return f'target="{self.target}" is any such device, and it is made for this machine'
        if isinstance(self.mesh, jax.sharding.AbstractMesh):
            return "the mesh has no devices, and it is made for this machine"
        return ""

    def resolve_target(self) -> Target:
        """Returns the target that is meant; if none is named, the mesh's devices or the default."""
        if self.target is None and isinstance(self.mesh, jax.sharding.Mesh):
            device = self.mesh.devices.flat[0]
            return target_of(device.platform, device.device_kind)
        return target_named(self.target or jax.default_backend())


def _rules(
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None, given: object
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Which dims each axis of the mesh splits: as given, else by the axis's name."""
    axes = dict(given)  # type: ignore[call-overload]
    if mesh is None:
        if axes:
            raise ScheduleError("axes are given and no mesh", fix="pass mesh= too")
        return ()
    if not isinstance(mesh, jax.sharding.Mesh | jax.sharding.AbstractMesh):
        raise ScheduleError(f"mesh={mesh!r} is not a mesh", fix="make one with jax.make_mesh")
    if mesh.size < 1:
        raise ScheduleError(f"{mesh} has no devices", fix="every axis has one or more")
    for axis in axes:
        _one_of("axes", axis, mesh.axis_names)
    for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True):
        if kind != jax.sharding.AxisType.Auto:
            raise ScheduleError(
                f"the mesh axis {axis} is {kind.name.lower()}, not automatic",
                fix="make the mesh with axis_types=(jax.sharding.AxisType.Auto, ...), one per axis",
            )
        if axis not in axes and axis not in DEFAULT_AXES:
            raise ScheduleError(
                f"nothing says what the mesh axis {axis} splits",
                fix=f'pass axes={{"{axis}": "G"}}, or name it one of {", ".join(DEFAULT_AXES)}',
            )
    rules = {a: axes.get(a, DEFAULT_AXES.get(a, "")) for a in mesh.axis_names}
    return tuple(
        (a, tuple(d.split()) if isinstance(d, str) else tuple(d)) for a, d in rules.items()
    )


def _one_of(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ScheduleError(
            f'{field}="{value}" is unknown{did_you_mean(value, known)}',
            fix=f"use one of {', '.join(known)}",
        )
