"""Ops that share a loop over runs of rows: its body as a local function."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from itertools import groupby

from moegen.backends.expressions import epilogue, tensor_dtype
from moegen.backends.grouped.common import own_sizes
from moegen.backends.source import Emitter, aligned, dims_of, widened
from moegen.ir.program import Op, Value
from moegen.ir.types import EXPERT
from moegen.kernels.grouped_dot import runs
from moegen.ops.grouped import sizes_of
from moegen.ops.linalg import einsum_spec
from moegen.ops.parts import ROWS


def statements(e: Emitter, ops: Sequence[Op], returned: Sequence[Value]) -> list[str]:
    """The body of a function that returns these values: op by op, and loop by loop."""
    lines: list[str] = []
    for number, group in groupby(ops, key=lambda op: op.attr.get("loop")):
        mine = tuple(group)
        if number is None:
            lines += e.statements(mine)
            continue
        others = [v.name for op in ops if op not in mine for v in op.inputs]
        lines += write_loop(e, mine, {*others, *(v.name for v in returned)})
    return lines


def write_loop(e: Emitter, ops: Sequence[Op], wanted: Set[str]) -> list[str]:
    """The statements of one loop; `wanted` names the results that are read outside."""
    inside = {r.name for op in ops for r in op.results}
    given = dict.fromkeys(v for op in ops for v in _operands(op) if v.name not in inside)
    rows = [v for v in given if ROWS in dims_of(v)]
    experts = [v for v in given if EXPERT in dims_of(v)]
    results = [r for op in ops for r in op.results if r.name in wanted]
    made = [r for r in results if ROWS in dims_of(r)]
    summed = [r for r in results if EXPERT in dims_of(r)]
    body = [line for op in ops for line in e.located(op, BODIES[op.name](e, op))]
    whole = _all_rows(e, ops, made, rows)
    first = next(op for op in ops if "block" in op.attr)
    arguments = (
        own_sizes(e, sizes_of(first)),
        str(first.attr["block"]),
        _tuple([e.name(v) for v in rows]),
        _tuple([e.aligned(v, _expert_first(v)) for v in experts]),
    )
    targets = [_tuple([e.name(r) for r in some]) if some else "_" for some in (made, summed)]
    return [
        "",
        f"def work({', '.join(e.name(v) for v in (*rows, *experts))}):",
        *(f"    {line}" for line in body),
        f"    return {_tuple(whole)}, {_tuple([e.name(r) for r in summed])}",
        "",
        f"{', '.join(targets)} = {e.use(runs.over_runs)}(work, {', '.join(arguments)})",
        *(
            f"{e.name(r)} = {aligned(e.name(r), _expert_first(r), dims_of(r))}"
            for r in summed
            if _expert_first(r) != dims_of(r)
        ),
    ]


def _all_rows(e: Emitter, ops: Sequence[Op], made: list[Value], rows: list[Value]) -> list[str]:
    """What a run returns for its rows; an expert's vector stands for all of them within it."""
    copies = {r for op in ops if op.name == "per_row" for r in op.results}
    count = f"{e.name(rows[0])}.shape[0]" if rows else ""
    return [
        f"jnp.broadcast_to({n}, ({count}, *{n}.shape[1:]))" if r in copies else n
        for r, n in ((r, e.name(r)) for r in made)
    ]


def _dot(e: Emitter, op: Op) -> list[str]:
    rows, weights, _, *extra = op.inputs
    spec = einsum_spec(dims_of(rows), _own(weights), dims_of(op.results[0]))
    w = widened(e.name(weights), weights, e.name(rows))
    product = f'jnp.einsum("{spec}", {e.name(rows)}, {w})'
    return epilogue(e, op, product, tuple(extra))


def _outer(e: Emitter, op: Op) -> list[str]:
    a, b, _ = op.inputs
    spec = einsum_spec(dims_of(a), dims_of(b), _own(op.result))
    return [f'{e.name(op.result)} = {e.use(runs.outer)}("{spec}", {e.name(a)}, {e.name(b)})']


def _sum(e: Emitter, op: Op) -> list[str]:
    rows, _ = op.inputs
    dtype = tensor_dtype(rows)
    wide = f", dtype=jnp.float32).astype({dtype})" if dtype in SHORT else ")"
    return [f"{e.name(op.result)} = jnp.sum({e.name(rows)}, axis=0{wide}"]


def _per_row(e: Emitter, op: Op) -> list[str]:
    return [f"{e.name(op.result)} = {e.name(op.inputs[0])}[None]"]


SHORT = ("jnp.bfloat16", "jnp.float16")
"""Dtypes that are summed in float32."""
BODIES: dict[str, Callable[[Emitter, Op], list[str]]] = {
    "grouped_dot": _dot,
    "grouped_outer": _outer,
    "grouped_sum": _sum,
    "per_row": _per_row,
}
"""How the ops that can share a loop are written for one run."""


def _operands(op: Op) -> tuple[Value, ...]:
    """What an op reads of rows and experts."""
    return tuple(v for v in op.inputs if v != sizes_of(op) and {ROWS, EXPERT} & set(dims_of(v)))


def _expert_first(value: Value) -> tuple[str, ...]:
    return (EXPERT, *_own(value))


def _own(value: Value) -> tuple[str, ...]:
    """The dims of one expert's part."""
    return tuple(d for d in dims_of(value) if d != EXPERT)


def _tuple(names: list[str]) -> str:
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"
