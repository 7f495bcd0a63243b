"""An exchange round a ring, as jax.lax.ppermute."""

from __future__ import annotations

from moegen.backends.collectives import axis_names
from moegen.backends.source import Emitter, Template, dims_of
from moegen.ir.program import Op
from moegen.kernels import ring


def _ring_part(e: Emitter, op: Op) -> list[str]:
    (x,), axes, by = op.inputs, axis_names(op.attr["axes"]), op.attr["by"]
    axis = dims_of(x).index(op.attr["over"])
    call = e.use(ring.part_at)
    return [f"{e.results(op)} = {call}({e.name(x)}, {axes}, {axis}, by={by})"]


def _ring_permute(e: Emitter, op: Op) -> list[str]:
    (x,), axes, by, n = op.inputs, axis_names(op.attr["axes"]), op.attr["by"], op.attr["devices"]
    if by % n == 0:
        return [f"{e.results(op)} = {e.name(x)}"]
    pairs = f"[(n, (n + {by}) % {n}) for n in range({n})]"
    return [f"{e.results(op)} = jax.lax.ppermute({e.name(x)}, {axes}, {pairs})"]


def _ring_join(e: Emitter, op: Op) -> list[str]:
    names, axes = ", ".join(e.name(v) for v in op.inputs), axis_names(op.attr["axes"])
    axis = dims_of(op.result).index(op.attr["over"])
    call = e.use(ring.joined_parts)
    return [f"{e.results(op)} = {call}([{names}], {axes}, {axis}, by={op.attr['by']})"]


TEMPLATES: dict[str, Template] = {
    "ring_part": _ring_part,
    "ring_permute": _ring_permute,
    "ring_join": _ring_join,
}
