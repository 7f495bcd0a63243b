"""Moves between devices as jax.lax collectives, and the functions that one device runs.

Under `jax.shard_map` each device calls the same function on its own parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.backends.source import Emitter, Template, dims_of
from moegen.ir.placement import Axes
from moegen.ir.program import Op, Program, Value
from moegen.ir.types import CAPACITY, EXPERT, placement_of
from moegen.kernels import parts
from moegen.kernels.rows import exchange, ragged
from moegen.ops.parts import ROWS, SENT

RESERVED = frozenset(("P", "mesh", "functools", "gradients"))
"""Names in a module for several devices that values must not take."""


def axis_names(axes: Axes) -> str:
    """Mesh axes as jax.lax takes them: one name, or a tuple of them."""
    return f'"{axes[0]}"' if len(axes) == 1 else repr(axes).replace("'", '"')


def _set(e: Emitter, op: Op, expression: str) -> list[str]:
    return [f"{e.results(op)} = {expression}"]


def _given(e: Emitter, op: Op) -> tuple[str, str]:
    return e.name(op.inputs[0]), axis_names(op.attr["axes"])


def _axis(op: Op, name: str) -> int:
    return dims_of(op.inputs[0]).index(op.attr[name])


def _all_to_all(e: Emitter, op: Op) -> list[str]:
    x, axes = _given(e, op)
    split, join = _axis(op, "split"), _axis(op, "join")
    args = f"{x}, {axes}, split_axis={split}, concat_axis={join}, tiled=True"
    return _set(e, op, f"jax.lax.all_to_all({args})")


def _all_gather(e: Emitter, op: Op) -> list[str]:
    x, axes = _given(e, op)
    return _set(e, op, f"jax.lax.all_gather({x}, {axes}, axis={_axis(op, 'over')}, tiled=True)")


def _take_part(e: Emitter, op: Op) -> list[str]:
    x, axes = _given(e, op)
    return _set(e, op, f"{e.use(parts.own_part)}({x}, {axes}, {_axis(op, 'over')})")


def _psum(e: Emitter, op: Op) -> list[str]:
    x, axes = _given(e, op)
    return _set(e, op, f"jax.lax.psum({x}, {axes})")


def _reduce_scatter(e: Emitter, op: Op) -> list[str]:
    x, axes = _given(e, op)
    dim = f"scatter_dimension={_axis(op, 'over')}"
    return _set(e, op, f"jax.lax.psum_scatter({x}, {axes}, {dim}, tiled=True)")


def _swap_parts(e: Emitter, op: Op) -> list[str]:
    x, axes = _given(e, op)
    at = 0 if dims_of(op.inputs[0])[0] == SENT else 1
    args = f"{x}, {axes}, split_axis={at}, concat_axis={at}, tiled=True"
    return _set(e, op, f"jax.lax.all_to_all({args})")


def _pair_numbers(e: Emitter, op: Op) -> list[str]:
    expert, position = (e.name(v) for v in op.inputs)
    slot, counts = (e.name(r) for r in op.results)
    devices = op.attr["devices"]
    pairs = e.program.sizes[SENT] // (op.attr["parts"] * devices)
    args = f"{expert}, {position}, {EXPERT}, {CAPACITY}, devices={devices}, pairs={pairs}"
    return [
        f"{slot}, {counts} = {e.use(exchange.pair_slots)}({args})",
        f"{counts} = {counts}[None]",
    ]


def _regroup(e: Emitter, op: Op) -> list[str]:
    (counts,), (take, back, sizes) = op.inputs, op.results
    devices = op.attr["devices"]
    args = f"{e.name(counts)}.reshape({devices}, -1), pairs={e.size(SENT, back)} // {devices}"
    args += f", rows={e.size(ROWS, take)}, block={op.attr['block']}"
    return [
        f"{e.results(op)} = {e.use(exchange.arrived_rows)}({args})",
        f"{e.name(sizes)} = {e.name(sizes)}[None]",
    ]


def _sent_sizes(e: Emitter, op: Op) -> list[str]:
    counts, axes = _given(e, op)
    return _set(e, op, f"{e.use(ragged.own_sizes)}({counts}, {axes}, block={op.attr['block']})")


def _travel(e: Emitter, op: Op) -> list[str]:
    x, counts = (e.name(v) for v in op.inputs)
    function = ragged.KERNELS[op.attr["kernel"]][op.name]
    rows = e.size(dims_of(op.result)[0], op.result)
    args = f"{x}, {counts}, {axis_names(op.attr['axes'])}, rows={rows}, block={op.attr['block']}"
    return _set(e, op, f"{e.use(function)}({args})")


def _take_rows(e: Emitter, op: Op) -> list[str]:
    x, index = (e.name(v) for v in op.inputs)
    return _set(e, op, f'{x}.at[{index}].get(mode="fill", fill_value=0)')


TEMPLATES: dict[str, Template] = {
    "all_to_all": _all_to_all,
    "all_gather": _all_gather,
    "take_part": _take_part,
    "psum": _psum,
    "reduce_scatter": _reduce_scatter,
    "swap_parts": _swap_parts,
    "pair_numbers": _pair_numbers,
    "regroup": _regroup,
    "take_rows": _take_rows,
    "sent_sizes": _sent_sizes,
    "send_rows": _travel,
    "return_rows": _travel,
}


def own_parts(e: Emitter, made: str, value: Value, but: str = "") -> str:
    """Source that keeps a device's part of what every device made whole, dim by dim."""
    place = placement_of(value.type)
    for i, dim in enumerate(dims_of(value)):
        if dim != but and (axes := place.axes(dim)):
            made = f"{e.use(parts.own_part)}({made}, {axis_names(axes)}, {i})"
    return made


def spec(value: Value) -> str:
    """Where a value is, as source: P("data", None)."""
    place = placement_of(value.type)
    if not place.splits:
        return "P()"
    axes = [place.axes(dim) for dim in dims_of(value)]
    while not axes[-1]:
        axes.pop()
    return f"P({', '.join(axis_names(a) if a else 'None' for a in axes)})"


def specs(values: Sequence[Value]) -> str:
    """A tuple of places as source."""
    found = [spec(v) for v in values]
    return f"({', '.join(found)}{',' if len(found) == 1 else ''})"


def on_each_device(inputs: Sequence[Value], outputs: str) -> str:
    """The decorator of a function that every device runs on its parts."""
    return (
        "@functools.partial(\n    jax.shard_map,\n    mesh=mesh,\n"
        f"    in_specs={specs(inputs)},\n    out_specs={outputs},\n    check_vma=False,\n)"
    )


def mesh_source(program: Program) -> str:
    """Lines that make the mesh, unless it was handed in; none for one device."""
    names = tuple(name for name, _ in program.mesh)
    sizes = tuple(size for _, size in program.mesh)
    text = repr(names).replace("'", '"')
    auto = f"axis_types=(jax.sharding.AxisType.Auto,) * {len(names)}"
    return (
        '# mesh\nif "mesh" not in globals():  # the schedule\'s is handed in\n'
        f"    mesh = jax.make_mesh({sizes}, {text}, {auto})"
    )
