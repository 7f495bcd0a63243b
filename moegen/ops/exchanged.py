"""A product of slots that are on their way: an exchange and a `dot` in one, for one kernel.

Its meaning, types and placement are those of `all_to_all` and `dot`, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moegen.errors import ShapeError
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality
from moegen.ir.program import Literal, Op, make_attrs
from moegen.ir.registry import Eval, OpDef, lookup, register
from moegen.ir.types import CAPACITY, EXPERT, GROUP, Tensor, Type
from moegen.ops.named import tensor

SLOTS = (EXPERT, GROUP, CAPACITY)
_WAY = {"join": GROUP, "split": EXPERT}


def exchange_inside(move: Op, product: Op, devices: int) -> Op:
    """A `dot` of what an `all_to_all` to experts gives, as one op that gives both results."""
    attrs = make_attrs({**product.attr, "axes": move.attr["axes"], "devices": devices})
    operands = (*move.operands, *product.operands[1:])
    results = (*product.results, *move.results)
    return replace(product, name=ExchangedDot.name, operands=operands, attrs=attrs, results=results)


@register
class ExchangedDot(OpDef):
    """`exchanged_dot(x, w, axes=("expert",), devices=4, over="D")`: slots go to their experts.

    Returns the products of x [E, G, C, D] with w [E, D, F] or [E, F, D], and x itself, both where
    the experts are, on `devices` devices. `select_kernels` writes what runs it.
    """

    name = "exchanged_dot"
    attributes = ("axes", "devices", "over", "out", "kernel", "tile", "source", "interpret")
    arity = (2, 2)
    moves = True

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        x, w = (tensor(o) for o in operands)
        how = {name: attrs[name] for name in ("over", "out") if name in attrs}
        (product,) = lookup("dot").infer(dims, x, w, **how)
        made = tensor(product)
        if attrs["devices"] < 1 or any(dims[d] % attrs["devices"] for d in (EXPERT, GROUP)):
            raise ShapeError(f"devices={attrs['devices']} do not divide the experts and groups")
        if x.dims[:3] != SLOTS or len(x.dims) != 4 or attrs["over"] != x.dims[3]:
            raise ShapeError(f'needs slots [{", ".join(SLOTS)}, D] and over="D", got {x}')
        if len(w.dims) != 3 or w.dims[0] != EXPERT or made.dims[:3] != SLOTS:
            raise ShapeError(f"needs weights [{EXPERT}, D, F] and gives slots, got {w} and {made}")
        return (product, x)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        move = {"axes": attrs["axes"], **_WAY}
        (arrived,) = lookup("all_to_all").place(operands[:1], results[1:], move)
        product = lookup("dot").place((arrived, operands[1]), results[:1], {"over": attrs["over"]})
        return (*product, arrived)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        return lookup("dot").locality(operands, {"over": attrs["over"]})

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        product = replace(env.op, results=env.op.results[:1])
        return lookup("dot").evaluate(replace(env, op=product), *arrays, **attrs), arrays[0]


def depth_and_width(op: Op) -> tuple[str, str]:
    """The dim that an `exchanged_dot` sums over, and the one that it makes."""
    made = op.results[0].type
    assert isinstance(made, Tensor)
    return op.attr["over"], made.dims[3]
