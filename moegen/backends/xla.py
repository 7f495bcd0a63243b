"""The XLA backend: how each op is written in jax.numpy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from moegen.backends import collectives, exchanged, ring
from moegen.backends.collectives import axis_names
from moegen.backends.expressions import (
    EXPRESSIONS,
    JNP_DTYPES,
    elementwise,
    epilogue,
    tensor_dtype,
)
from moegen.backends.grouped import table
from moegen.backends.grouped.common import experts_first, own_sizes
from moegen.backends.source import Emitter, Template, aligned, dims_of, widened
from moegen.errors import LoweringError
from moegen.ir.program import Op, Value
from moegen.ir.types import CAPACITY, CHOICE, EXPERT, GROUP, TOKEN, Tensor, placement_of
from moegen.kernels import activations, exchanged_dot_tpu, few_rows, parts
from moegen.kernels import ring as ring_kernels
from moegen.kernels.grouped_dot import blocks
from moegen.kernels.rows import exchange, gather
from moegen.ops.call import resolve
from moegen.ops.linalg import einsum_spec
from moegen.ops.named import dims_tuple
from moegen.ops.parts import ROWS, SENT
from moegen.ops.rows import slot_rank

SLOTS = (EXPERT, GROUP, CAPACITY)
TEMPLATES: dict[str, Template] = {
    **dict.fromkeys(EXPRESSIONS, elementwise),
    **collectives.TEMPLATES,
    **ring.TEMPLATES,
    **exchanged.TEMPLATES,
    **table.TEMPLATES,
}
KERNEL_NAMES = frozenset(
    name
    for module in (
        activations,
        blocks,
        exchange,
        exchanged_dot_tpu,
        few_rows,
        gather,
        parts,
        ring_kernels,
        *table.MODULES,
    )
    for name, _ in inspect.getmembers(module, inspect.isfunction)
)
"""Names of kernel functions, which values in the source must not take."""


def template(name: str) -> Callable[[Template], Template]:
    """Registers the function below as the way to write an op."""

    def add(function: Template) -> Template:
        TEMPLATES[name] = function
        return function

    return add


def _set(e: Emitter, op: Op, expression: str) -> list[str]:
    return [f"{e.results(op)} = {expression}"]


def _axes(value: Value, over: Any) -> tuple[int, ...]:
    return tuple(dims_of(value).index(d) for d in dims_tuple(over))


def _axis(value: Value, over: Any) -> str:
    found = _axes(value, over)
    return str(found[0]) if len(found) == 1 else str(found)


# --- reductions, shapes, draws ------------------------------------------------------------


def _reduction(call: str) -> Template:
    def write(e: Emitter, op: Op) -> list[str]:
        (x,) = op.inputs
        # jax.numpy widens sums of short integers; the type rule does not.
        short = op.name == "sum" and getattr(x.type, "dtype", "") in ("i8", "u8")
        dtype = f", dtype={tensor_dtype(x)}" if short else ""
        return _set(e, op, f"{call}({e.name(x)}, axis={_axis(x, op.attr['over'])}{dtype})")

    return write


for _name, _function_name in (
    ("sum", "jnp.sum"),
    ("mean", "jnp.mean"),
    ("max", "jnp.max"),
    ("min", "jnp.min"),
    ("softmax", "jax.nn.softmax"),
    ("logsumexp", "jax.nn.logsumexp"),
):
    TEMPLATES[_name] = _reduction(_function_name)


@template("argmax")
def _argmax(e: Emitter, op: Op) -> list[str]:
    (x,) = op.inputs
    axis = _axis(x, op.attr["over"])
    return _set(e, op, f"jnp.argmax({e.name(x)}, axis={axis}).astype(jnp.int32)")


@template("cumsum")
def _cumsum(e: Emitter, op: Op) -> list[str]:
    (x,) = op.inputs
    reverse = ", reverse=True" if op.attr.get("reverse") else ""
    return _set(e, op, f"jax.lax.cumsum({e.name(x)}, axis={_axis(x, op.attr['over'])}{reverse})")


@template("full")
def _full(e: Emitter, op: Op) -> list[str]:
    dtype = JNP_DTYPES[op.attr["dtype"]]
    number = e.operand(op.operands[0])
    return _set(e, op, f"jnp.full({e.shape(op.attr['dims'], op.result)}, {number}, {dtype})")


@template("iota")
def _iota(e: Emitter, op: Op) -> list[str]:
    made = f"jnp.arange({op.attr['dim']}, dtype=jnp.int32)"
    return _set(e, op, collectives.own_parts(e, made, op.result))


@template("broadcast")
def _broadcast(e: Emitter, op: Op) -> list[str]:
    dims = op.attr["dims"]
    return _set(
        e, op, f"jnp.broadcast_to({e.aligned(op.inputs[0], dims)}, {e.shape(dims, op.result)})"
    )


@template("merge")
@template("split")
def _reshape(e: Emitter, op: Op) -> list[str]:
    sizes = ", ".join(e.size(dim, op.result) for dim in dims_of(op.result))
    return _set(e, op, f"{e.name(op.inputs[0])}.reshape({sizes})")


@template("concat")
def _concat(e: Emitter, op: Op) -> list[str]:
    axis = dims_of(op.result).index(op.attr["into"])
    names = ", ".join(e.name(v) for v in op.inputs)
    return _set(e, op, f"jnp.concatenate([{names}], axis={axis})")


@template("slice")
def _slice(e: Emitter, op: Op) -> list[str]:
    (x,) = op.inputs
    start, into = op.attr["start"], op.attr["into"]
    axis = dims_of(x).index(op.attr["over"])
    made = f"jax.lax.slice_in_dim({e.name(x)}, {start}, {start} + {into}, axis={axis})"
    return _set(e, op, made)


@template("one_hot")
def _one_hot(e: Emitter, op: Op) -> list[str]:
    index, dim = e.name(op.inputs[0]), op.attr["dim"]
    return _set(e, op, f"jax.nn.one_hot({index}, {dim}, dtype={JNP_DTYPES[op.attr['dtype']]})")


@template("top_k")
def _top_k(e: Emitter, op: Op) -> list[str]:
    (x,) = op.inputs
    over = op.attr["over"]
    last = (*(d for d in dims_of(x) if d != over), over)
    return _set(e, op, f"jax.lax.top_k({aligned(e.name(x), dims_of(x), last)}, {op.attr['dim']})")


@template("take")
def _take(e: Emitter, op: Op) -> list[str]:
    x, index = op.inputs
    (over,) = dims_tuple(op.attr["over"])
    want = (*dims_of(op.result), over)
    hot = f"jax.nn.one_hot({e.name(index)}, {over}, dtype=jnp.bool_)"
    mask = aligned(hot, (*dims_of(index), over), want)
    return _set(
        e, op, f"jnp.sum(jnp.where({mask}, {e.aligned(x, want)}, 0), axis=-1, "
        f"dtype={tensor_dtype(x)})"
    )  # fmt: skip


def _draw(sample: str) -> Template:
    def write(e: Emitter, op: Op) -> list[str]:
        key, dims, stream = e.name(op.inputs[0]), op.attr["dims"], op.attr["stream"]
        dtype = JNP_DTYPES[op.attr["dtype"]]
        if dims[:1] == (GROUP,):
            groups = placement_of(op.result.type).axes(GROUP)
            shape = f"({', '.join((e.size(GROUP, op.result), *dims[1:]))}{',' * (len(dims) == 1)})"
            args = f"{sample}, {key}, {stream}, {shape}, {dtype}"
            args += f", axes={collectives.axis_names(groups)}" if groups else ""
            made = f"{e.use(gather.group_draws)}({args})"
        else:
            shape = f"({', '.join(dims)}{',' * (len(dims) == 1)})"
            made = f"{sample}(jax.random.fold_in({key}, {stream}), {shape}, {dtype})"
        return _set(e, op, collectives.own_parts(e, made, op.result, but=GROUP))

    return write


TEMPLATES["normal"] = _draw("jax.random.normal")
TEMPLATES["uniform"] = _draw("jax.random.uniform")

# --- products -----------------------------------------------------------------------------


@template("dot")
def _dot(e: Emitter, op: Op) -> list[str]:
    a, b, *extra = op.inputs
    if op.attr.get("kernel") == "weights_left":
        product = f"{e.use(few_rows.dot_weights_left)}({e.name(a)}, {e.name(b)})"
        return epilogue(e, op, product, tuple(extra))
    spec = einsum_spec(dims_of(a), dims_of(b), dims_of(op.results[0]))
    left, right = widened(e.name(a), a, e.name(b)), widened(e.name(b), b, e.name(a))
    return epilogue(e, op, f'jnp.einsum("{spec}", {left}, {right})', tuple(extra))


@template("grouped_sum")
def _grouped_sum(e: Emitter, op: Op) -> list[str]:
    a, sizes = op.inputs
    call = e.use(blocks.grouped_sum)
    return _set(e, op, f"{call}({e.name(a)}, {own_sizes(e, sizes)}, block={op.attr['block']})")


@template("per_row")
def _per_row(e: Emitter, op: Op) -> list[str]:
    values, sizes = op.inputs
    return _set(
        e,
        op,
        f"{e.use(blocks.per_row)}({experts_first(e, values)}, {own_sizes(e, sizes)}, "
        f"{e.size(ROWS, op.result)})",
    )


# --- routing ------------------------------------------------------------------------------


def _queued(e: Emitter, op: Op) -> str:
    """The choices of an op that orders them, their priority if they have one, and E."""
    expert, *priority = op.inputs
    return f"{e.name(expert)}, {e.name(priority[0]) if priority else 'None'}, {EXPERT}"


@template("positions")
def _positions(e: Emitter, op: Op) -> list[str]:
    return _set(e, op, f"{e.use(gather.queue_positions)}({_queued(e, op)})")


@template("served")
def _served(e: Emitter, op: Op) -> list[str]:
    call = e.use(gather.served_of_all)
    return _set(e, op, f"{call}({_queued(e, op)}, {op.attr['capacity']})")


@template("slot_numbers")
def _slot_numbers(e: Emitter, op: Op) -> list[str]:
    expert, position = (e.name(v) for v in op.inputs)
    kept = f"({expert} >= 0) & ({expert} < {EXPERT}) & ({position} < {CAPACITY})"
    return _set(
        e,
        op,
        f"jnp.where({kept}, {expert} * {CAPACITY} + {position}, {EXPERT} * {CAPACITY})",
    )


@template("row_numbers")
def _row_numbers(e: Emitter, op: Op) -> list[str]:
    expert, position = (e.name(v) for v in op.inputs)
    call, block = e.use(gather.sorted_rows), op.attr["block"]
    sizes = op.results[1]
    parts = op.attr.get("parts", 1)
    dim = op.attr.get("dim", ROWS)
    rows = dim if parts == 1 else f"{dim} // {parts}"
    made = f"{call}({expert}, {position}, {EXPERT}, {CAPACITY}, block={block}, rows={rows})"
    lines = _set(e, op, made)
    return [*lines, f"{e.name(sizes)} = {e.name(sizes)}[None]"] if "parts" in op.attr else lines


@template("invert_slots")
def _invert_slots(e: Emitter, op: Op) -> list[str]:
    slot, dims = e.name(op.inputs[0]), tuple(op.attr["dims"])
    call = e.use(gather.choice_in_slot)
    if len(dims) == 1:
        rows = e.size(dims[0], op.result)
        return _set(e, op, f"{call}({slot}.reshape(1, -1), {rows})[0]")
    groups = e.size(GROUP, op.result)
    made = f"{call}({slot}.reshape({groups}, -1), {EXPERT} * {CAPACITY})"
    shaped = f"{made}.reshape({groups}, {EXPERT}, {CAPACITY})"
    return _set(e, op, aligned(shaped, (GROUP, EXPERT, CAPACITY), dims))


@template("take_tokens")
def _take_tokens(e: Emitter, op: Op) -> list[str]:
    x, source, *weight = (e.name(v) for v in op.inputs)
    if dims_of(op.inputs[1]) not in ((ROWS,), (SENT,), SLOTS):
        raise LoweringError(f"take_tokens: source is {op.inputs[1].type}, not over {SLOTS}")
    args = ", ".join([x, source, CHOICE, *weight])
    return _set(e, op, f"{e.use(gather.tokens_in_slots)}({args})")


@template("item_slots")
def _item_slots(e: Emitter, op: Op) -> list[str]:
    return _set(e, op, f"{e.use(gather.slots_of_items)}({e.name(op.inputs[0])}, {TOKEN})")


@template("take_items")
def _take_items(e: Emitter, op: Op) -> list[str]:
    x, token = (e.name(v) for v in op.inputs)
    made = f"{e.use(gather.items_in_slots)}({x}, {token})"
    own = dims_of(op.result)[3:]
    return _set(e, op, aligned(made, (*SLOTS, *own), dims_of(op.result)))


def _rows_first(e: Emitter, rows: Value) -> tuple[str, str]:
    """Rows laid out [E, G, C, ...] or [N, ...], and the capacity argument that goes with it."""
    rank = slot_rank(rows.type) if isinstance(rows.type, Tensor) else 0
    if rank == 1:
        return e.name(rows), ""
    return e.aligned(rows, (*SLOTS, *dims_of(rows)[3:])), f", capacity={CAPACITY}"


def _slots_here(e: Emitter, op: Op, rows: str) -> str:
    """The slots of choices as this device numbers them, which may have some of the experts only."""
    y, slot = op.inputs[:2]
    axes = placement_of(y.type).axes(EXPERT)
    if not axes or CAPACITY not in dims_of(y):
        return e.name(slot)
    use = e.use(gather.own_slots)
    return f"{use}({e.name(slot)}, {axis_names(axes)}, {rows}.shape[0] * {CAPACITY})"


@template("take_slots")
def _take_slots(e: Emitter, op: Op) -> list[str]:
    rows, capacity = _rows_first(e, op.inputs[0])
    args = ", ".join([rows, _slots_here(e, op, rows), *(e.name(v) for v in op.inputs[2:])])
    return _set(e, op, f"{e.use(gather.slots_to_tokens)}({args}{capacity})")


@template("match_slots")
def _match_slots(e: Emitter, op: Op) -> list[str]:
    rows, capacity = _rows_first(e, op.inputs[0])
    slot, x = _slots_here(e, op, rows), e.name(op.inputs[2])
    dtype = JNP_DTYPES[op.attr["dtype"]]
    call = e.use(gather.slots_times_tokens)
    return _set(e, op, f"{call}({rows}, {slot}, {x}, {dtype}{capacity})")


@template("slot_mask")
def _slot_mask(e: Emitter, op: Op) -> list[str]:
    slot, *weight = (e.name(v) for v in op.inputs)
    dtype = JNP_DTYPES[op.attr["dtype"]]
    args = ", ".join([slot, EXPERT, CAPACITY, dtype, *weight])
    return _set(e, op, f"{e.use(gather.slot_masks)}({args})")


@template("barrier")
def _barrier(e: Emitter, op: Op) -> list[str]:
    names = ", ".join(e.name(v) for v in op.inputs)
    if len(op.results) == 1:
        return _set(e, op, f"jax.lax.optimization_barrier({names})")
    return _set(e, op, f"jax.lax.optimization_barrier(({names}))")


# --- opaque functions ---------------------------------------------------------------------


def _function(e: Emitter, name: str) -> str:
    """Imports a function of `mg.call`, or leaves a local one to be supplied."""
    module, _, qualname = name.partition(":")
    if "<" in qualname or "#" in qualname or module == "__main__":
        local = e.callee(name, qualname)
        e.functions[local] = resolve(name)
        return local
    first, *rest = qualname.split(".")
    imported = e.callee(f"{module}:{first}", first)
    e.imports[f"from {module} import {first} as {imported}"] = None
    return ".".join([imported, *rest])


def _mapped(e: Emitter, op: Op, args: tuple[Value, ...]) -> tuple[str, list[str]]:
    """The function mapped over the dims that ride along, and its arguments."""
    call, batch = _function(e, op.attr["fn"]), tuple(op.attr["batch"])
    if settings := op.attr.get("settings"):
        e.imports["import functools"] = None
        given = ", ".join(f"{name}={value!r}" for name, value in settings)
        call = f"functools.partial({call}, {given})"
    for dim in reversed(batch):
        axes = tuple(0 if dim in dims_of(v) else None for v in args)
        call = f"jax.vmap({call}, in_axes={axes})"
    ordered = [
        e.aligned(
            v,
            (*(d for d in batch if d in dims_of(v)), *(d for d in dims_of(v) if d not in batch)),
        )
        for v in args
    ]
    return call, ordered


@template("call")
def _call(e: Emitter, op: Op) -> list[str]:
    call, args = _mapped(e, op, op.inputs)
    return _set(e, op, f"{call}({', '.join(args)})")


@template("call_vjp")
def _call_vjp(e: Emitter, op: Op) -> list[str]:
    *inputs, cotangent = op.inputs
    call, args = _mapped(e, op, tuple(inputs))
    wrt = op.attr["wrt"]
    inner = ", ".join("arg" if i == wrt else a for i, a in enumerate(args))
    pull = f"jax.vjp(lambda arg: {call}({inner}), {args[wrt]})[1]"
    have = dims_of(inputs[wrt])
    batch = tuple(op.attr["batch"])
    order = (*(d for d in batch if d in have), *(d for d in have if d not in batch))
    ordered = e.aligned(cotangent, tuple(op.attr["dims"]))
    return _set(e, op, aligned(f"{pull}({ordered})[0]", order, have))
