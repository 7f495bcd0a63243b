"""exchange_inside: an exchange of slots moves into the product that reads what arrives.

    dot(all_to_all(x), w)  ->  exchanged_dot(x, w)

A kernel then sends each slot itself, and multiplies what has arrived while the rest is on its way:
the first product of an expert, and the first of its backward. What comes back is exchanged as ever.
"""

from __future__ import annotations

import math

from moegen.ir.locality import dims_of
from moegen.ir.program import Op, Program, Value
from moegen.ir.types import EXPERT
from moegen.ops.exchanged import SLOTS, exchange_inside
from moegen.ops.named import dims_tuple
from moegen.passes.overlap import to_experts

INSIDE = "inside"
"""What a Schedule says to have the exchange done by the product's kernel."""


def overlap_inside(program: Program) -> Program:
    """Returns the program with every exchange inside the first product that can do it."""
    products, mesh = fusible(program), dict(program.mesh)
    definitions = program.definitions()
    done: dict[str, Op] = {}
    fused = {product.result.name for product in products.values()}
    ops: list[Op] = []
    for op in program.ops:
        name = op.results[0].name
        if name in products:
            product = products[name]
            ops += _missing(product.inputs[1], definitions, done)
            devices = math.prod(mesh[axis] for axis in op.attr["axes"])
            ops.append(exchange_inside(op, product, devices))
        elif name not in fused and name not in done:
            ops.append(op)
        done[name] = op
    return program.with_(ops=tuple(ops))


def fusible(program: Program) -> dict[str, Op]:
    """For each exchange that can go into a product, by its result's name, that product."""
    users, definitions = program.users(), program.definitions()
    found: dict[str, Op] = {}
    for move in program.ops:
        if to_experts(move) and dims_of(move.result.type)[:3] == SLOTS:
            readers = users.get(move.result.name, [])
            able = (op for op in readers if _multiplies(op, move.result, definitions))
            if product := next(able, None):
                found[move.result.name] = product
    return found


def _multiplies(op: Op, rows: Value, definitions: dict[str, Op]) -> bool:
    """Whether an op is a plain product of these rows with weights that do not depend on them."""
    if op.name != "dot" or op.inputs[0] != rows or len(op.inputs) != 2 or "epilogue" in op.attr:
        return False
    weights, made = op.inputs[1], dims_of(op.result.type)
    by_expert = dims_of(weights.type)[:1] == (EXPERT,) and len(dims_of(weights.type)) == 3
    summed = dims_tuple(op.attr["over"]) == dims_of(rows.type)[3:]
    used = [v for one in _missing(weights, definitions, {}) for v in one.inputs]
    return by_expert and summed and made[:3] == SLOTS and rows not in used and weights != rows


def _missing(value: Value, definitions: dict[str, Op], done: dict[str, Op]) -> list[Op]:
    """The ops that a value still needs, in their order; they are done then."""
    op = definitions.get(value.name)
    if op is None or op.results[0].name in done:
        return []
    before = [one for v in op.inputs for one in _missing(v, definitions, done)]
    done[op.results[0].name] = op
    return [*before, op]
