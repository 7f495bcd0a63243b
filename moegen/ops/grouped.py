"""Products over sorted rows: each row meets the weights of its own expert.

`sizes` is i32[E], the number of rows of each expert, in order; rows past their sum belong
to no expert. On a mesh it is i32[Parts, E], where each device has the rows of its groups, or
i32[GroupParts, E], where those of a part went to the devices of their experts. Meanings are one-hot
products; `moegen/kernels/grouped_dot` has what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from moegen.errors import DtypeError, PlacementError, ShapeError
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, dims_of, locality, place_results
from moegen.ir.program import Literal, Op, Value
from moegen.ir.registry import Eval, OpDef, register
from moegen.ir.types import EXPERT, NARROW, Tensor, Type, placement_of
from moegen.ops.linalg import apply_epilogue, dot_dims, einsum_spec, with_epilogue
from moegen.ops.named import align, dims_tuple, require_dims, tensor
from moegen.ops.parts import GROUP_PARTS, PARTS, ROWS, with_splits, without

_SIZES = ((EXPERT,), (PARTS, EXPERT), (GROUP_PARTS, EXPERT))


def owner_mask(sizes: Any, rows: int, dtype: Any) -> Any:
    """One-hot [N, E]: which expert owns each row; all 0 past the last owned row."""
    ends = jnp.cumsum(sizes)
    at = jnp.arange(rows)[:, None]
    return ((at >= ends - sizes) & (at < ends)).astype(dtype)


def sizes_of(op: Op) -> Value:
    """The operand of a grouped op that says how many rows each expert has."""
    return op.inputs[{"gathered_dot": 3, "grouped_dot": 2, "grouped_outer": 2}.get(op.name, 1)]


def epilogue_operands(op: Op) -> tuple[Value, ...]:
    """What the epilogue of a grouped product reads beside the product."""
    return op.inputs[op.inputs.index(sizes_of(op)) + 1 :]


def _at_rows(operand: Any) -> Any:
    """The type of an epilogue's operand: a value per expert stands for its copy at each row."""
    if not isinstance(operand, Tensor) or EXPERT not in operand.dims:
        return operand
    return Tensor(operand.dtype, (ROWS, *(d for d in operand.dims if d != EXPERT)))


def _check_sizes(sizes: Type | Literal, **attrs: Any) -> None:
    """Checks the number of rows of each expert, and the block they are padded to."""
    found = tensor(sizes, "sizes")
    if found.dtype != "i32" or found.dims not in _SIZES:
        raise ShapeError(f"sizes must be i32[{EXPERT}], got {sizes}")
    if attrs.get("block", 1) < 1:
        raise ShapeError(f"block={attrs['block']}", fix="rows per block are 1 or more")


def _check_same_dtype(a: Tensor, b: Tensor) -> None:
    if a.dtype != b.dtype or not a.is_float:
        raise DtypeError(f"needs two tensors of one real dtype, got {a.dtype} and {b.dtype}")


def _mask(env: Eval, sizes: Any, dtype: Any) -> Any:
    """One-hot [N, E]; lists follow each other by part, then by the device of their experts."""
    rows = env.sizes[ROWS]
    if sizes.ndim == 1:
        return owner_mask(sizes, rows, dtype)
    devices = env.sizes[PARTS] // sizes.shape[0]
    lists = sizes.reshape(env.sizes[PARTS], -1)
    experts = lists.shape[1]
    masks = [owner_mask(one, rows // len(lists), dtype) for one in lists]
    before = [i % devices * experts for i in range(len(lists))]
    after = [(devices - 1) * experts - n for n in before]
    wide = [jnp.pad(m, ((0, 0), (b, a))) for m, b, a in zip(masks, before, after, strict=True)]
    return jnp.concatenate(wide)


class GroupedOp(OpDef):
    """Base of ops on rows and their experts: each device has its rows and their experts' weights.

    Rows are split over the axes of the groups and those of the experts; a sum over rows is owed
    over the groups' axes only, as no two devices along the others have the same experts.
    """

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        lists = (ROWS, EXPERT, PARTS, GROUP_PARTS)
        splits = {d: placement_of(o).axes(d) for o in operands for d in dims_of(o) if d in lists}
        for operand in operands:
            for dim in dims_of(operand):
                if dim in lists and placement_of(operand).axes(dim) != splits[dim]:
                    raise PlacementError(f"{dim} is split in two ways")
        experts = splits.get(EXPERT, ())
        groups = next((splits[d] for d in (PARTS, GROUP_PARTS) if d in splits), ())
        rows = (*groups, *experts)
        if splits.get(ROWS, rows) != rows:
            raise PlacementError(
                f"rows are split over {'@'.join(splits[ROWS])}, groups and experts over "
                f"{'@'.join(rows)}"
            )
        bare = [without(o, lists) for o in operands]
        made = place_results(self.locality(operands, attrs), bare, results, attrs)
        all_lists = {ROWS: rows, EXPERT: experts}
        return tuple(
            with_splits(r, all_lists, groups if ROWS not in dims_of(r) else ()) for r in made
        )


@register
class GroupedDot(GroupedOp):
    """`grouped_dot(rows, w, sizes, over="D")`: rows[N, D] times w[E, D, F] of each row's expert.

    An operand of its epilogue may be per expert: each row reads its expert's. Weights may be
    narrow, i8 or f8e4m3: their numbers are converted to the dtype of the rows.
    """

    name = "grouped_dot"
    attributes = (
        "over",
        "out",
        "epilogue",
        "block",
        "kernel",
        "loop",
        "tile",
        "source",
        "interpret",
    )
    arity = (3, None)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        rows, w = tensor(operands[0]), tensor(operands[1])
        if rows.dims[:1] != (ROWS,) or EXPERT not in w.dims or ROWS in w.dims:
            raise ShapeError(
                f"needs rows [{ROWS}, ...] and weights [{EXPERT}, ...], got {rows}, {w}"
            )
        over = dims_tuple(attrs["over"])
        require_dims(rows, over)
        require_dims(w, over)
        _check_same_dtype(rows, rows if w.dtype in NARROW else w)
        _check_sizes(operands[2], **attrs)
        natural = tuple(d for d in dot_dims(rows, w, over) if d != EXPERT)
        acc = Tensor(rows.dtype, tuple(attrs.get("out", natural)))
        if acc.dims[:1] != (ROWS,) or sorted(acc.dims) != sorted(natural):
            raise ShapeError(f"out={acc.dims} does not list the result's dims {natural}")
        return with_epilogue(dims, acc, [_at_rows(o) for o in operands[3:]], attrs)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        over = dims_tuple(attrs["over"])
        if "epilogue" in attrs:
            return locality(whole=over)
        return locality(summed=over, linear=((0,), (1,)))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        rows, w, sizes, *extra = arrays
        types = [tensor(v.type) for v in env.op.inputs]
        a, b = types[0].dims, types[1].dims
        mask = _mask(env, sizes, rows.dtype)
        spread = jnp.einsum(einsum_spec(a, (ROWS, EXPERT), (*a, EXPERT)), rows, mask)
        acc = Tensor(types[0].dtype, tensor(env.op.results[0].type).dims)
        wide = w.astype(rows.dtype)
        product = jnp.einsum(einsum_spec((*a, EXPERT), b, acc.dims), spread, wide)
        copied = [
            _copied(array, type_, mask) if EXPERT in type_.dims else array
            for array, type_ in zip(extra, types[3:], strict=True)
        ]
        return apply_epilogue(env, product, acc, copied, [_at_rows(t) for t in types[3:]])


@register
class GroupedOuter(GroupedOp):
    """`grouped_outer(a, b, sizes)`: per expert, the sum over its rows of a[N, D] b[N, F]."""

    name = "grouped_outer"
    attributes = ("out", "block", "kernel", "loop", "tile", "source", "interpret")
    arity = (3, 3)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        a, b = tensor(operands[0]), tensor(operands[1])
        if a.dims[:1] != (ROWS,) or b.dims[:1] != (ROWS,):
            raise ShapeError(f"needs two row tensors [{ROWS}, ...], got {a}, {b}")
        _check_same_dtype(a, b)
        _check_sizes(operands[2], **attrs)
        out, known = tuple(attrs["out"]), {EXPERT, *a.dims[1:], *b.dims[1:]}
        if EXPERT not in out or not set(out) <= known:
            raise ShapeError(f"out={out} must have {EXPERT} and dims of {a} and {b}")
        return (Tensor(a.dtype, out),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        (a, b, *_), kept = operands, attrs["out"]
        summed = [d for d in (*dims_of(a), *dims_of(b)) if d not in kept and d != ROWS]
        return locality(summed=summed, linear=((0,), (1,)))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        a, b, sizes = arrays
        da, db = (tensor(v.type).dims for v in env.op.inputs[:2])
        mask = _mask(env, sizes, a.dtype)
        spread = jnp.einsum(einsum_spec(da, (ROWS, EXPERT), (*da, EXPERT)), a, mask)
        return jnp.einsum(einsum_spec((*da, EXPERT), db, tuple(attrs["out"])), spread, b)


@register
class GroupedSum(GroupedOp):
    """`grouped_sum(a, sizes)`: per expert, the sum of its rows: [N, F] to [E, F]."""

    name = "grouped_sum"
    attributes = ("block", "kernel", "loop", "tile", "source")
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        a = tensor(operands[0])
        if a.dims[:1] != (ROWS,):
            raise ShapeError(f"needs rows [{ROWS}, ...], got {a}")
        _check_same_dtype(a, a)
        _check_sizes(operands[1], **attrs)
        return (Tensor(a.dtype, (EXPERT, *a.dims[1:])),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        a, sizes = arrays
        return jnp.einsum("ne,n...->e...", _mask(env, sizes, a.dtype), a)


@register
class PerRow(GroupedOp):
    """`per_row(b, sizes)`: each row's copy of its expert's b[E, ...]: [N, ...]."""

    name = "per_row"
    attributes = ("loop",)
    arity = (2, 2)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        b = tensor(operands[0])
        if EXPERT not in b.dims:
            raise ShapeError(f"needs [{EXPERT}, ...], got {b}")
        _check_sizes(operands[1])
        dims.shape((ROWS,))
        return (Tensor(b.dtype, (ROWS, *(d for d in b.dims if d != EXPERT))),)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return locality(linear=((0,),))

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        b, sizes = arrays
        return _copied(b, tensor(env.op.inputs[0].type), _mask(env, sizes, b.dtype))


def _copied(values: Any, type_: Tensor, mask: Any) -> Any:
    """Each row's copy of its expert's values, 0 at rows of none."""
    lead = (EXPERT, *(d for d in type_.dims if d != EXPERT))
    return jnp.einsum("ne,e...->n...", mask.astype(values.dtype), align(values, type_.dims, lead))
