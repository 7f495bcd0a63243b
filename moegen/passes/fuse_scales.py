"""The part of `fuse` that keeps narrow weights narrow until their product.

Weights stored as i8 or f8e4m3 are read as w = q s, with a scale s for each expert and column. As s
is the same along the width that is summed, x (q s) is (x q) s: the product reads q as it is stored,
and the scales become part of its epilogue. Where the summed width is the one that s is along, as in
the gradient of the rows, it is (x s) q. No array of the widened weights is made.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.ir.builder import Builder
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.rewrite import rewrite
from moegen.ir.types import EXPERT, NARROW
from moegen.ops.grouped import sizes_of
from moegen.ops.named import dims_tuple, tensor
from moegen.ops.parts import ROWS
from moegen.passes.canonicalize import canonicalize

PRODUCTS = ("dot", "grouped_dot")
REAL = ("f32", "bf16")
"""Dtypes of rows that hold every sum of unscaled products: in f16 it could overflow."""


def fuse_scales(program: Program) -> Program:
    """Returns the program with products of narrow weights, scaled before or after.

    Args:
      program: before its products have epilogues.
    """
    if not any(tensor_dtype(v) in NARROW for v in program.inputs):
        return program
    return canonicalize(rewrite(program, _scale_moved))


def _scale_moved(b: Builder, op: Op) -> Sequence[Operand] | None:
    if op.name not in PRODUCTS or "epilogue" in op.attr or len(op.inputs) < 2:
        return None
    if tensor_dtype(op.result) not in REAL:
        return None
    definitions = {r.name: made for made in b.ops for r in made.results}
    for side in (1, 0):
        found = _codes_and_scale(op.inputs[side], definitions)
        if found is not None:
            return _product(b, op, side, *found)
    return None


def _codes_and_scale(weights: Value, definitions: dict[str, Op]) -> tuple[Value, Value] | None:
    """What weights are the product of, be it cast afterwards: narrow numbers, and the rest."""
    op = definitions.get(weights.name)
    if op is not None and op.name == "cast" and tensor(op.inputs[0].type).is_float:
        op = definitions.get(op.inputs[0].name)
    if op is None or op.name != "mul" or len(op.inputs) != 2:
        return None
    for codes, scale in (op.inputs, op.inputs[::-1]):
        cast = definitions.get(codes.name)
        if cast is not None and cast.name == "cast" and tensor_dtype(cast.inputs[0]) in NARROW:
            return cast.inputs[0], scale
    return None


def _product(b: Builder, op: Op, side: int, codes: Value, scale: Value) -> Sequence[Operand] | None:
    """The product of the codes, with what their scale multiplies instead; None if it is neither."""
    over, along = set(dims_tuple(op.attr["over"])), set(tensor(scale.type).dims) - {EXPERT}
    operands, hint = list(op.operands), op.result.name
    operands[side] = codes
    if not along & over:
        made = b.one(op.name, *operands, hint=f"{hint}_codes", **op.attr)
        return (_scaled(b, made, scale, op, hint),)
    rows = op.inputs[1 - side]
    if along <= over and tensor_dtype(rows) in REAL:
        operands[1 - side] = _scaled(b, rows, scale, op, f"{rows.name}_scaled")
        return (b.one(op.name, *operands, hint=hint, **op.attr),)
    return None


def _scaled(b: Builder, value: Value, scale: Value, op: Op, hint: str) -> Value:
    """A value times the scale of its expert, multiplied in the scale's dtype."""
    dims, dtype, precise = tensor(value.type).dims, tensor_dtype(value), tensor_dtype(scale)
    if ROWS in dims and EXPERT in tensor(scale.type).dims:
        scale = b.one("per_row", scale, sizes_of(op), hint=f"{scale.name}_rows")
    value = value if dtype == precise else b.one("cast", value, dtype=precise)
    made = b.one("mul", value, scale, hint=hint)
    if tensor(made.type).dims != dims:
        made = b.one("broadcast", made, dims=dims, hint=hint)
    return made if dtype == precise else b.one("cast", made, dtype=dtype, hint=hint)


def tensor_dtype(value: Value) -> str:
    """The dtype of a tensor; "" of anything else."""
    return getattr(value.type, "dtype", "")
