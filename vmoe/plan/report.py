"""A plan as lines for people and as one dict for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moegen import plan
from vmoe.model import parameter_count
from vmoe.plan.asked import Asked
from vmoe.plan.estimate import Estimate, Work, seconds
from vmoe.sharding import MeshAxes
from vmoe.table import table

NAMES = {
    "all_to_all": "all-to-all",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_reduce": "all-reduce",
    "permute": "permute",
}


@dataclass(frozen=True)
class Plan:
    """All that is known of a step on a mesh.

    Attributes:
      wanted: what was asked for.
      estimated: the analytic part.
      found: what `vmoe.plan.compiling` brought; {} where nothing was compiled.
      better: other meshes with a shorter estimated step, the best first.
    """

    wanted: Asked
    estimated: Estimate
    found: dict[str, Any] = field(default_factory=dict)
    better: tuple[Estimate, ...] = ()

    @property
    def compiled(self) -> dict[str, Any]:
        """The compiler's figures; {} without any."""
        return dict(self.found.get("compiled", {}))

    @property
    def taken(self) -> Estimate:
        """The estimate with the collectives and the HBM traffic of the compiled program, if any.

        XLA knows no operations of kernels, so that those stay ours.
        """
        if not self.compiled:
            return self.estimated
        moved = tuple(
            plan.Collective(
                one["kind"], tuple(one["axes"]), one["devices"],
                one["nbytes"] // one["times"], one["times"],
            )
            for one in self.compiled["collectives"]
        )  # fmt: skip
        ours = self.estimated.work
        work = Work(ours.flops, self.compiled["bytes"] or ours.bytes, moved)
        held = self.compiled["memory"]["peak"]
        return replace(self.estimated, work=work, held=held, seconds=seconds(work, self.wanted))

    @property
    def excess(self) -> float:
        """Bytes by which a device has too little; negative: what is left."""
        return self.taken.held - self.wanted.topology.target.memory


def as_dict(made: Plan) -> dict[str, Any]:
    """The plan for a file."""
    wanted, taken = made.wanted, made.taken
    return {
        "model": wanted.name,
        "depth": wanted.config.model.depth,
        "whole_depth": wanted.whole_depth or wanted.config.model.depth,
        "topology": wanted.topology.name,
        "devices": wanted.topology.devices,
        "mesh": dict(wanted.config.mesh),
        "batch": wanted.config.data.batch_size,
        "parameters": parameters(wanted),
        "is_compiled": bool(made.compiled),
        "compiler": made.found,
        "hbm": {
            "available": wanted.topology.target.memory,
            "state": taken.state,
            "peak": taken.held,
            "fits": fits(made),
        },
        "flops": {"counted": taken.work.flops, "xla": made.compiled.get("flops")},
        "bytes": taken.work.bytes,
        "collectives": _moved(taken.work.collectives),
        "seconds": taken.seconds,
        "step_seconds": taken.step,
        "bottleneck": taken.bottleneck,
        "better_estimated": [
            {"mesh": dict(one.mesh), "step_seconds": one.step, "peak": one.held,
             "bottleneck": one.bottleneck}
            for one in made.better
        ],
        "estimated_here": {"step_seconds": made.estimated.step, "peak": made.estimated.held},
    }  # fmt: skip


def fits(made: Plan) -> bool:
    """Whether a device can hold the step; the compiler's word where it has spoken."""
    return not made.found.get("refused") and made.excess <= 0


def parameters(wanted: Asked) -> int:
    """Weights of the model that is planned."""
    return parameter_count(wanted.config.model, wanted.image)


def as_text(made: Plan) -> str:
    """The plan for a terminal."""
    parts = [_head(made), _memory(made), _exchange(made), _time(made), _better(made)]
    return "\n".join(part for part in parts if part)


def mesh_text(mesh: MeshAxes) -> str:
    """A mesh as the flag has it."""
    return ",".join(f"{axis}={size}" for axis, size in mesh)


def _head(made: Plan) -> str:
    wanted = made.wanted
    model, config = wanted.config.model, wanted.config
    depth = f"{model.depth} blocks"
    if wanted.whole_depth:
        depth = f"ONLY {model.depth} of its {wanted.whole_depth} blocks"
    target = wanted.topology.target
    lines = [
        f"{wanted.name}: {depth}, {parameters(wanted) / 1e9:.3f} billion parameters",
        f"{wanted.topology.name}: {wanted.topology.devices} devices {target.name}, "
        f"mesh {mesh_text(config.mesh)}, {config.data.batch_size} images a step",
    ]
    if made.compiled:
        took = ", ".join(f"{what} {s:.0f} s" for what, s in made.found["seconds"].items())
        lines.append(f"compiled: {took}; {_gb(made.found['process_bytes'])} of this machine")
    elif not made.found.get("refused"):
        lines.append("not compiled: all figures are estimated")
    return "\n".join(lines) + "\n"


def _memory(made: Plan) -> str:
    there = made.wanted.topology.target.memory
    if refused := made.found.get("refused"):
        return f"HBM per device\n  DOES NOT FIT, or does not compile: {refused}\n"
    word = "compiled" if made.compiled else "estimated"
    rows = [("weights and optimiser", _gb(made.taken.state))]
    if made.compiled:
        held = made.compiled["memory"]
        rows += [(what, _gb(held[what])) for what in ("arguments", "temporaries", "peak")]
    else:
        rows.append(("peak", _gb(made.taken.held)))
    rows.append(("available", _gb(there)))
    left = f"  fits, {_gb(-made.excess)} left\n"
    if made.excess > 0:
        left = f"  DOES NOT FIT: {_gb(made.excess)} too much\n"
    return table((f"HBM per device, {word}", ""), [(f"  {a}", b) for a, b in rows]) + left


def _exchange(made: Plan) -> str:
    rows = [
        (f"  {NAMES[one['kind']]} over {'+'.join(one['axes'])}", str(one["times"]),
         _gb(one["nbytes"]))
        for one in _moved(made.taken.work.collectives)
    ]  # fmt: skip
    if not rows:
        return "no exchange between devices\n"
    return table(("exchange per device and step", "times", "bytes in"), rows)


def _moved(found: Sequence[plan.Collective]) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "axes": list(axes), "nbytes": nbytes, "times": times}
        for (kind, axes), (nbytes, times) in plan.totals(found).items()
    ]


def _time(made: Plan) -> str:
    taken = made.taken
    flops = f"  products per device: {taken.work.flops / 1e12:.2f} TFLOP"
    if made.compiled and made.compiled["flops"]:
        flops += f" counted, {made.compiled['flops'] / 1e12:.2f} by XLA (which sees no kernels)"
    rows = [(f"  {what}", f"{s * 1e3:.2f} ms") for what, s in taken.seconds.items()]
    rows.append(("  step", f"{taken.step * 1e3:.2f} ms"))
    return (
        table(("time at peak rates, exchange overlapping with nothing", ""), rows)
        + f"  bottleneck: {taken.bottleneck}\n{flops}\n"
    )


def _better(made: Plan) -> str:
    here = f"{mesh_text(made.estimated.mesh)} is estimated at {made.estimated.step * 1e3:.2f} ms"
    if not made.better:
        return f"no mesh of these devices is estimated to be better ({here})\n"
    rows = [
        (f"  {mesh_text(one.mesh)}", f"{one.step * 1e3:.2f} ms", one.bottleneck, _gb(one.held))
        for one in made.better
    ]
    head = ("meshes estimated to be better, not compiled", "step", "bottleneck", "HBM")
    return table(head, rows) + f"  ({here}, by the same formulas)\n"


def _gb(nbytes: float) -> str:
    """Bytes as GiB, or MiB below a tenth of one."""
    if math.fabs(nbytes) < 0.1 * 2**30:
        return f"{nbytes / 2**20:.2f} MiB"
    return f"{nbytes / 2**30:.2f} GiB"
