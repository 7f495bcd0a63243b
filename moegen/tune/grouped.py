"""The kernels of grouped products as choices: where each runs, what it cannot, with which tile.

A new kernel is an entry here and one in `moegen/backends/grouped/table.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moegen.ir.program import Op, Value
from moegen.ir.types import EXPERT, Tensor
from moegen.ops.grouped import epilogue_operands
from moegen.tune import native, pallas_gpu, pallas_tcgen05, pallas_tpu, pallas_triton
from moegen.tune.operands import wrong_ranks
from moegen.tune.target import Target

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GroupedChoice:
    """A kernel that grouped products can be given.

    Attributes:
      platforms: where it runs; there "auto" takes the first that can run a product.
      obstacle: why it cannot run a product on a target; empty if it can.
      tile: its tile for a product that it can run; empty if it has none.
      gathers: whether it can gather the rows of a product itself.
      per_expert: whether its epilogues read values per expert.
      interpreter: whether it can be run by Pallas's interpreter, on a target that is not its own.
      asked_only: whether "auto" leaves it alone, as nothing tells yet that it is the faster one.
    """

    platforms: tuple[str, ...]
    obstacle: Callable[[Op, Sizes, Target], str] = lambda op, sizes, target: ""
    tile: Callable[[Op, Sizes, Target], tuple[int, ...]] = lambda op, sizes, target: ()
    gathers: bool = False
    per_expert: bool = False
    interpreter: bool = False
    asked_only: bool = False

    def automatic(self, target: Target) -> bool:
        """Whether "auto" may take it on a target."""
        return target.platform in self.platforms and not self.asked_only

    def refusal(self, op: Op, sizes: Sizes, target: Target) -> str:
        """Why it cannot run a product, be it for what is fused to it; empty if it can."""
        if op.name == "gathered_dot" and not self.gathers:
            return "it gathers no rows"
        if not self.per_expert and any(EXPERT in _dims(v) for v in epilogue_operands(op)):
            return "its epilogue reads a value per expert"
        return self.obstacle(op, sizes, target)


def _dims(value: Value) -> tuple[str, ...]:
    return value.type.dims if isinstance(value.type, Tensor) else ()


def not_ragged(op: Op, sizes: Sizes, target: Target) -> str:
    """Why XLA's ragged dot cannot run a product; empty if it can."""
    return wrong_ranks(op)


GROUPED_CHOICES: dict[str, GroupedChoice] = {
    "runs": GroupedChoice(("cpu",)),
    "pallas_tpu": GroupedChoice(
        ("tpu",),
        pallas_tpu.obstacle,
        pallas_tpu.tile,
        gathers=True,
        per_expert=True,
        interpreter=True,
    ),
    "ragged_dot": GroupedChoice(("tpu", "gpu"), not_ragged),
    "blocks": GroupedChoice(("cpu", "tpu", "gpu")),
    "pallas_gpu": GroupedChoice(
        ("gpu",), pallas_gpu.obstacle, pallas_gpu.tile, interpreter=True, asked_only=True
    ),
    "pallas_tcgen05": GroupedChoice(
        ("gpu",), pallas_tcgen05.obstacle, pallas_tcgen05.tile, interpreter=True, asked_only=True
    ),
    "pallas_triton": GroupedChoice(
        ("gpu",),
        pallas_triton.obstacle,
        pallas_triton.tile,
        per_expert=True,
        interpreter=True,
        asked_only=True,
    ),
    "native": GroupedChoice((), native.obstacle),
}
"""By name, for "auto" in the order of preference.
`native` is for the CPU of this machine: `pick_format` weighs it against XLA's kernels."""
