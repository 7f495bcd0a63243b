"""The one-hot format: masks over all slots; rows move by matrix products.

The classical layout of GShard (arXiv:2006.16668): simple, and costly in memory and FLOPs. It
is also the form of soft routes, whose weights are dense anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from moegen.ir.builder import Builder
from moegen.ir.placement import placed_dims
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.types import CAPACITY, EXPERT, TOKEN, placement_of
from moegen.passes.formats.common import Stores, dims_of, dtype_of, lower_routes, weight_if_used
from moegen.passes.formats.numbered import slot_numbers


def to_onehot(program: Program) -> Program:
    """Rewrites routes into masks [G, S, E, C]."""
    stores: Stores = {
        "assign": _store_choices,
        "assign_items": _store_items,
        "dense_route": _store_dense,
    }
    return lower_routes(program, stores, lambda b, op: None)


@dataclass(frozen=True, slots=True)
class MaskedChoices:
    """Token choice: weight [G, S, K] and slot numbers i32[G, S, K], masks made on use."""

    weight: Value
    slot: Value
    empty: int

    def dispatch(self, b: Builder, op: Op) -> Value:
        """A product with the mask."""
        return _dispatch(b, op, self._mask(b, op, op.operands[1]))

    def combine(self, b: Builder, op: Op) -> Value:
        """A product with the mask, weighted."""
        return _combine(b, op, self._mask(b, op, op.operands[1]))

    def affinity(self, b: Builder, op: Op) -> Value:
        """Inner products of each choice's row with its token."""
        _, y, x = op.operands
        dtype = dtype_of(self.weight)
        return b.one("match_slots", y, self.slot, x, dtype=dtype, hint=op.result.name)

    def kept(self, b: Builder, op: Op) -> Value:
        """A choice is kept when its number means a slot."""
        return b.one("lt", self.slot, self.empty, hint=op.result.name)

    def _mask(self, b: Builder, op: Op, like: Operand) -> Value:
        weight = weight_if_used(op, self.weight)
        hint = "combine_weights" if weight else "dispatch_mask"
        return b.one("slot_mask", self.slot, *weight, dtype=dtype_of(like), hint=hint)


@dataclass(frozen=True, slots=True)
class MaskedItems:
    """Expert choice: weight [G, E, C] and one-hot tokens [G, E, C, S]."""

    weight: Value
    token: Value

    def dispatch(self, b: Builder, op: Op) -> Value:
        """A product with the mask."""
        return _dispatch(b, op, self._mask(b, op, op.operands[1]))

    def combine(self, b: Builder, op: Op) -> Value:
        """A product with the mask, weighted."""
        return _combine(b, op, self._mask(b, op, op.operands[1]))

    def affinity(self, b: Builder, op: Op) -> Value:
        """All inner products of rows and tokens, of which the mask picks one per slot."""
        products = _all_products(b, op)
        mask = self._mask(b, op, products)
        out = dims_of(self.weight)
        return b.one("dot", products, mask, over=TOKEN, out=out, hint=op.result.name)

    def kept(self, b: Builder, op: Op) -> Value:
        """Every slot is taken."""
        return b.one("ge", self.token, 0, hint=op.result.name)

    def _mask(self, b: Builder, op: Op, like: Operand) -> Value:
        mask = b.one("one_hot", self.token, dim=TOKEN, dtype=dtype_of(like), hint="dispatch_mask")
        for weight in weight_if_used(op, self.weight):
            same = dtype_of(weight) == dtype_of(like)
            cast = weight if same else b.one("cast", weight, dtype=dtype_of(like))
            mask = b.one("mul", mask, cast, hint="combine_weights")
        return mask


@dataclass(frozen=True, slots=True)
class Dense:
    """A soft route: the weights [G, S, E, C] are the mask."""

    weight: Value

    def dispatch(self, b: Builder, op: Op) -> Value:
        """A product with the weights."""
        return _dispatch(b, op, self._like(b, op.operands[1]))

    def combine(self, b: Builder, op: Op) -> Value:
        """A product with the weights."""
        return _combine(b, op, self._like(b, op.operands[1]))

    def affinity(self, b: Builder, op: Op) -> Value:
        """All inner products of rows and tokens."""
        products = _all_products(b, op)
        wanted = dtype_of(self.weight)
        if dtype_of(products) == wanted:
            return products
        return b.one("cast", products, dtype=wanted, hint=op.result.name)

    def kept(self, b: Builder, op: Op) -> Value:
        """Everything has a weight."""
        dims = dims_of(self.weight)
        where = placed_dims(dims, placement_of(self.weight.type)) or None
        return b.one("full", True, dims=dims, dtype="bool", placed=where, hint=op.result.name)

    def _like(self, b: Builder, rows: Operand) -> Value:
        dtype = dtype_of(rows)
        same = dtype_of(self.weight) == dtype
        return self.weight if same else b.one("cast", self.weight, dtype=dtype)


def _store_choices(b: Builder, op: Op) -> MaskedChoices:
    weight, slot = slot_numbers(b, op)
    return MaskedChoices(weight, slot, b.dims[EXPERT] * b.dims[CAPACITY])


def _store_items(b: Builder, op: Op) -> MaskedItems:
    weight, token = op.inputs
    return MaskedItems(weight, token)


def _store_dense(b: Builder, op: Op) -> Dense:
    (weight,) = op.inputs
    return Dense(weight)


def _dispatch(b: Builder, op: Op, mask: Value) -> Value:
    return b.one("dot", mask, op.operands[1], over=TOKEN, hint=op.result.name)


def _combine(b: Builder, op: Op, mask: Value) -> Value:
    return b.one("dot", mask, op.operands[1], over=(EXPERT, CAPACITY), hint=op.result.name)


def _all_products(b: Builder, op: Op) -> Value:
    """[G, S, E, C]: every token's row times every slot's row."""
    path, y, x = op.operands
    assert isinstance(path, Value)
    own = dims_of(x)[2:]
    slots = getattr(path.type, "dims", ())
    return b.one("dot", y, x, over=own, out=slots, hint=op.result.name)
