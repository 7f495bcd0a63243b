"""A grouped product that takes its rows where the tokens are: a gather and `grouped_dot` in one.

Its meaning, types and placement are those of `take_tokens` and `grouped_dot`, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moegen.errors import ShapeError
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality
from moegen.ir.program import Literal, Op, Value
from moegen.ir.registry import Eval, OpDef, lookup, register
from moegen.ir.types import Tensor, Type
from moegen.ops.grouped import GroupedDot
from moegen.ops.named import tensor
from moegen.ops.parts import ROWS


def gather_inside(take: Op, product: Op) -> Op:
    """A `grouped_dot` of what an unweighted `take_tokens` gives, as one op."""
    operands = (*take.operands, *product.operands[1:])
    return replace(product, name=GatheredDot.name, operands=operands)


def gather_before(op: Op) -> tuple[Op, Op]:
    """The two ops that a `gathered_dot` is."""
    x, source = op.inputs[:2]
    rows = Value("rows", _rows(x.type, source.type))
    take = Op("take_tokens", (x, source), (), (rows,), op.location)
    return take, replace(op, name=GroupedDot.name, operands=(rows, *op.operands[2:]))


def _rows(x: Type | Literal, source: Type | Literal) -> Tensor:
    """The type of the rows that are never made."""
    tokens, taken = tensor(x, "x"), tensor(source, "source")
    return Tensor(tokens.dtype, (*taken.dims, *tokens.dims[2:]))


@register
class GatheredDot(OpDef):
    """`gathered_dot(x, source, w, sizes, over="D")`: rows of x[G, S, D] times w of their expert.

    `source` i32[N] says which choice each row is of, as for `take_tokens`.
    """

    name = "gathered_dot"
    attributes = GroupedDot.attributes
    arity = (4, None)

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        source = tensor(operands[1], "source")
        if source.dims != (ROWS,):
            raise ShapeError(f"source must be i32[{ROWS}], got {source}")
        (rows,) = lookup("take_tokens").types(dims, *operands[:2])
        return lookup("grouped_dot").infer(dims, rows, *operands[2:], **attrs)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        bare = _rows(operands[0], operands[1])
        (rows,) = lookup("take_tokens").place(operands[:2], [bare], {})
        return lookup("grouped_dot").place([rows, *operands[2:]], results, attrs)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return lookup("grouped_dot").locality(operands[1:], attrs)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        take, product = gather_before(env.op)
        rows = lookup("take_tokens").evaluate(replace(env, op=take), *arrays[:2])
        found = lookup("grouped_dot")
        return found.evaluate(replace(env, op=product), rows, *arrays[2:], **attrs)
