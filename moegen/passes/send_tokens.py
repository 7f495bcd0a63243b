"""send_tokens: all tokens go to all devices that share the experts, instead of rows to some.

With many choices a token is sent to nearly every device anyway, once per choice. Here every device
gathers the tokens of all, takes the rows of its own experts out of them, and adds what it has for
each token; the sums over the devices are scattered back. Forward and backward alike:

    all_to_all(take_tokens(x, source))  ->  take_tokens(all_gather(x), all_to_all(source))
    take_slots(all_to_all(y), slot)     ->  reduce_scatter(take_slots(y, all_gather(slot)))

It is for the slots format; which of the two takes less time is the cost model's to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from moegen.ir.builder import Builder
from moegen.ir.locality import dims_of
from moegen.ir.placement import Axes
from moegen.ir.program import Op, Operand, Program, Value
from moegen.ir.rewrite import keep, rewrite
from moegen.ir.types import CHOICE, EXPERT, GROUP, TOKEN

SENDS = ("auto", "rows", "tokens")
"""What a Schedule can ask to be sent."""


def send_tokens(program: Program) -> Program:
    """Returns the program with every exchange of slots, as far as it can, done by tokens."""
    return rewrite(program, _Tokens())


class _Tokens:
    """One walk; a call rewrites one op."""

    def __init__(self) -> None:
        self.made: dict[str, Op] = {}
        self.gathered: dict[tuple[str, Axes], Value] = {}

    def __call__(self, b: Builder, op: Op) -> Sequence[Operand]:
        at = len(b.ops)
        results = self.rewritten(b, op)
        for made in b.ops[at:]:
            self.made.update((r.name, made) for r in made.results)
        return results

    def rewritten(self, b: Builder, op: Op) -> Sequence[Operand]:
        before = [self.made.get(v.name) for v in op.inputs[:1]]
        if _moves(op, GROUP, EXPERT) and before[0] and before[0].name == "take_tokens":
            return (self.take(b, op, before[0]),)
        by_choice = op.name in ("take_slots", "match_slots") and dims_of(op.inputs[1].type) == (
            GROUP, TOKEN, CHOICE,
        )  # fmt: skip
        if by_choice and before[0] and _moves(before[0], EXPERT, GROUP):
            return (self.give(b, op, before[0]),)
        return keep(b, op)

    def take(self, b: Builder, move: Op, taken: Op) -> Value:
        """The rows of a device's experts, out of the tokens of all."""
        x, source, *weight = taken.inputs
        axes = move.attr["axes"]
        there = b.one("all_to_all", source, **move.attr, hint=f"{source.name}_x")
        operands = [self.of_all(b, x, axes), there, *(self.of_all(b, w, axes) for w in weight)]
        return b.one("take_tokens", *operands, hint=move.result.name)

    def give(self, b: Builder, op: Op, move: Op) -> Value:
        """For each token the sum over all devices, of which each keeps its own tokens'."""
        axes = move.attr["axes"]
        operands = [move.inputs[0], *(self.of_all(b, v, axes) for v in op.inputs[1:])]
        part = b.one(op.name, *operands, **op.attr, hint=f"{op.result.name}_all")
        return b.one("reduce_scatter", part, axes=axes, over=GROUP, hint=op.result.name)

    def of_all(self, b: Builder, value: Value, axes: Axes) -> Value:
        """The groups of all devices along the axes; gathered once."""
        key = (value.name, axes)
        if key not in self.gathered:
            hint = f"{value.name}_all"
            self.gathered[key] = b.one("all_gather", value, axes=axes, over=GROUP, hint=hint)
        return self.gathered[key]


def _moves(op: Op, join: str, split: str) -> bool:
    return op.name == "all_to_all" and (op.attr["join"], op.attr["split"]) == (join, split)
