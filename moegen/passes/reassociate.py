"""reassociate: no expert output is needed backwards, and no row is weighted before its product.

With y = a W at the rows, s the weights of the choices there and g the cotangent of the tokens
gathered to them, the derived backward of `combine` reads y for the weights' gradient and s g for
the rest. Both follow from the one product g W^T that the backward has to make anyway:

* the gradient of the weights, <y, g>, is <a, g W^T>;
* the cotangent of a, (s g) W^T, is s (g W^T), an epilogue of that product;
* the gradient of W, a^T (s g), is (s a)^T g.

So y need not be kept, and g is gathered once. It holds for whatever computes a, and through sums,
biases, scales and casts between W and y.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.ir import registry
from moegen.ir.builder import Builder
from moegen.ir.program import Literal, Op, Operand, Program, Value
from moegen.ir.rewrite import keep, rewrite
from moegen.ir.types import CAPACITY, GROUP, TOKEN, Route
from moegen.ops.named import dims_tuple
from moegen.ops.routing import ROW_DIMS
from moegen.passes.canonicalize import canonicalize
from moegen.passes.formats.common import dims_of, dtype_of


def reassociate(program: Program, save: str) -> Program:
    """Returns the joint program with weights moved behind products; save="all" changes nothing."""
    if save == "all" or not program.cotangents:
        return program
    return canonicalize(rewrite(program, _Reassociation(program)))


class _Reassociation:
    """One walk; a call rewrites one op."""

    def __init__(self, program: Program):
        self.backward = {v.name for v in program.cotangents}
        self.definitions: dict[str, Op] = {}
        self.scaled: dict[str, tuple[Value, Value]] = {}
        """Values that are another value times the weights of their rows."""

    def __call__(self, b: Builder, op: Op) -> Sequence[Operand]:
        at = len(b.ops)
        results = self.rewritten(b, op)
        for made in b.ops[at:]:
            self.definitions.update((r.name, made) for r in made.results)
        if any(v.name in self.backward for v in op.inputs):
            self.backward.update(v.name for v in results if isinstance(v, Value))
        return results

    def rewritten(self, b: Builder, op: Op) -> Sequence[Operand]:
        if op.name == "dispatch" and op.attr.get("weighted") and self.of_backward(op, 1):
            return (self.weigh_later(b, op),)
        if op.name == "affinity" and self.of_backward(op, 2) and not self.of_backward(op, 1):
            return (self.affinity(b, op),)
        sides = [i for i, o in enumerate(op.operands) if self.is_scaled(o)]
        if len(sides) == 1:
            return self.move_weight(b, op, sides[0])
        return keep(b, op)

    def of_backward(self, op: Op, side: int) -> bool:
        """Whether an operand depends on a cotangent, of a route whose choices have one slot."""
        route, operand = op.operands[0], op.operands[side]
        assert isinstance(route, Value)
        assert isinstance(route.type, Route)
        soft = TOKEN in route.type.weight.dims and CAPACITY in route.type.weight.dims
        return not soft and isinstance(operand, Value) and operand.name in self.backward

    def is_scaled(self, operand: Operand) -> bool:
        return isinstance(operand, Value) and operand.name in self.scaled

    # --- weights behind products

    def weigh_later(self, b: Builder, op: Op) -> Value:
        """Rows s g as the product of g and s."""
        route, g = op.operands
        rows = b.one("dispatch", route, g, hint=f"{op.result.name}_plain")
        weight = b.one("dispatch", route, _ones(b, g), weighted=True, hint="row_weight")
        return self.weighted(b, rows, weight, op.result.name)

    def weighted(self, b: Builder, rows: Value, weight: Value, hint: str) -> Value:
        """The product of rows and their weights, remembered as such."""
        made = b.one("mul", rows, weight, hint=hint)
        self.scaled[made.name] = (rows, weight)
        return made

    def move_weight(self, b: Builder, op: Op, side: int) -> Sequence[Operand]:
        """Moves the weights behind an op that is linear in the operand on that side."""
        operand = op.operands[side]
        assert isinstance(operand, Value)
        rows, weight = self.scaled[operand.name]
        if op.name == "dot":
            return (_weigh_product(b, op, side, rows, weight),)
        if not _is_linear(op, side):
            return keep(b, op)
        plain = b.one(op.name, *_with(op, side, rows), hint=f"{op.result.name}_plain", **op.attr)
        if op.name == "cast":
            weight = b.one("cast", weight, **op.attr)
        return (self.weighted(b, plain, weight, op.result.name),)

    # --- the gradient of the weights

    def affinity(self, b: Builder, op: Op) -> Value:
        """Inner products of each row's two sides, then taken to the choices."""
        route, y, g = op.operands
        assert isinstance(y, Value)
        rows = b.one("dispatch", route, g)
        inner, *more = self.inner(b, y, rows, dtype_of(op.result))
        for term in more:
            inner = b.one("add", inner, term)
        return b.one("affinity", route, inner, _ones(b, inner), hint=op.result.name)

    def inner(self, b: Builder, y: Operand, g: Value, dtype: str) -> list[Value]:
        """Values [G, E, C] that sum to the inner products of y and g at each row."""
        op = self.definitions.get(y.name) if isinstance(y, Value) else None
        if op is not None and op.name == "add":
            return [term for o in op.operands for term in self.inner(b, o, g, dtype)]
        side = _only_side_over_rows(op) if op is not None else None
        if op is None or side is None:
            return [_inner(b, y, g, dtype)]
        x, pulled = op.operands[side], registry.lookup(op.name).derive(b, op, g)[side]
        if op.name == "dot":
            return [_inner(b, x, pulled, dtype)]
        return self.inner(b, x, pulled, dtype)


def _weigh_product(b: Builder, op: Op, side: int, rows: Value, weight: Value) -> Value:
    """A product of weighted rows: with an expert's weights, or with other rows for a gradient."""
    other, hint = op.operands[1 - side], op.result.name
    summed = set(dims_tuple(op.attr["over"])) & set(ROW_DIMS)
    if not summed:
        return b.one("mul", b.one("dot", *_with(op, side, rows), **op.attr), weight, hint=hint)
    if _over_rows(other):
        weighted = b.one("mul", other, weight)
        return b.one("dot", *_with(op, side, rows, weighted), hint=hint, **op.attr)
    return keep(b, op)[0]


def _is_linear(op: Op, side: int) -> bool:
    """Whether an elementwise op of one changing operand is a multiple of it."""
    if op.name == "select":
        return side > 0 and op.operands[3 - side] == Literal(0.0)
    return op.name in ("mul", "neg", "cast") or (op.name == "div" and side == 0)


def _only_side_over_rows(op: Op) -> int | None:
    """The operand that differs from row to row, where the op is linear in it."""
    sides = [i for i, o in enumerate(op.operands) if _over_rows(o)]
    if op.name == "select":
        sides = [i for i in sides if i > 0]
    if len(sides) != 1 or not (op.name == "dot" or _is_linear(op, sides[0])):
        return None
    return sides[0]


def _inner(b: Builder, y: Operand, g: Value, dtype: str) -> Value:
    """Per row, the sum of y times g over the row's own dims."""
    if isinstance(y, Value):
        y, g = (v if dtype_of(v) == dtype else b.one("cast", v, dtype=dtype) for v in (y, g))
    product = b.one("mul", y, g)
    own = tuple(d for d in dims_of(product) if d not in ROW_DIMS)
    total = b.one("sum", product, over=own) if own else product
    return total if dtype_of(total) == dtype else b.one("cast", total, dtype=dtype)


def _ones(b: Builder, like: Value | Operand) -> Value:
    """[G, S] of ones, one per token."""
    return b.one("full", 1.0, dims=(GROUP, TOKEN), dtype=dtype_of(like), hint="ones")


def _with(op: Op, side: int, operand: Value, other: Value | None = None) -> list[Operand]:
    """The op's operands with one side replaced, or both."""
    operands = list(op.operands)
    operands[side] = operand
    if other is not None:
        operands[1 - side] = other
    return operands


def _over_rows(operand: Operand) -> bool:
    """Whether an operand has a value per slot."""
    return isinstance(operand, Value) and set(ROW_DIMS) <= set(getattr(operand.type, "dims", ()))
