"""Choices within a format: the kernel of each product, what shares a loop, what travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moegen.errors import LoweringError
from moegen.ir.program import Op, Program, Value
from moegen.ir.types import EXPERT, value_bytes
from moegen.passes.select_kernels import KernelChoice
from moegen.passes.send_tokens import send_tokens
from moegen.tune import exchanged
from moegen.tune.chunks import seconds_saved
from moegen.tune.cost import program_cost
from moegen.tune.few_rows import weights_go_left
from moegen.tune.formats import RAGGED_PLATFORMS
from moegen.tune.grouped import GROUPED_CHOICES, GroupedChoice
from moegen.tune.network import NETWORKS
from moegen.tune.target import Target
from moegen.tune.tuned import TunedTiles

KERNELS = ("auto", *GROUPED_CHOICES)
"""Kernels for grouped products that a Schedule can ask for."""

GATHERS = ("auto", "before", "inside")
"""Where a Schedule can ask rows of tokens to be gathered: before their products, or inside."""

LOOP_BYTES = 9e6
"""Weights and their gradients of one expert up to which products share a loop. With more (A in
float32, backward: 17 MB) they drive each other out of the cache: 1.55 against 1.44 times the dense
MLP; with less (E: 2.4 MB) rows that stay in it gain as much: 1.26 against 1.34."""


def kernel_for(
    op: Op,
    kernel: str,
    target: Target,
    sizes: Mapping[str, int],
    interpret: bool = False,
    tuned: TunedTiles | None = None,
    estimated: str = "",
) -> KernelChoice:
    """The kernel of one product.

    Args:
      op: any op that has a kernel.
      kernel: "auto" or a name of `moegen.tune.grouped.GROUPED_CHOICES`.
      target: the device.
      sizes: of the program's dims.
      interpret: whether a kernel of another platform is to be run by Pallas's interpreter.
      tuned: the tables to look in before the heuristics; None: heuristics only.
      estimated: the kernel that the format was chosen with, if it is a matter of that choice.

    Raises:
      LoweringError: if a kernel is asked for that cannot run the op.
    """
    if op.name == "exchanged_dot":
        return exchanged.choice(op, sizes, target, interpret)
    if op.name in ("send_rows", "return_rows"):
        ragged = target.platform in RAGGED_PLATFORMS
        return KernelChoice("ragged_all_to_all" if ragged else "all_gather", source="target")
    if op.name not in ("grouped_dot", "gathered_dot", "grouped_outer"):
        return KernelChoice("weights_left" if weights_go_left(op, sizes, target) else "xla")
    if kernel != "auto":
        return _asked_for(op, kernel, target, sizes, interpret)
    if estimated and not GROUPED_CHOICES[estimated].refusal(op, sizes, target):
        return KernelChoice(estimated, source="estimate")
    able = (n for n, c in GROUPED_CHOICES.items() if c.automatic(target))
    taken = next(n for n in able if not GROUPED_CHOICES[n].refusal(op, sizes, target))
    found = tuned.find(op, sizes, target) if tuned else None
    if found and (
        found.kernel == taken or not GROUPED_CHOICES[found.kernel].refusal(op, sizes, target)
    ):
        return KernelChoice(found.kernel, found.tile, found.basis)
    return KernelChoice(taken, GROUPED_CHOICES[taken].tile(op, sizes, target), "heuristic")


def gathers_inside(
    op: Op, gather: str, kernel: str, target: Target, sizes: Mapping[str, int]
) -> bool:
    """Whether a kernel is to gather the rows of a product.

    Args:
      op: the `gathered_dot` that it would be.
      gather: one of GATHERS; "auto" is before until a TPU has run the other.
      kernel: "auto" or a name of `moegen.tune.grouped.GROUPED_CHOICES`.
      target: the device.
      sizes: of the program's dims.

    Raises:
      LoweringError: if "inside" is asked for and the kernel cannot.
    """
    if gather != "inside":
        return False
    refusals = _refusals(op, kernel, target, sizes)
    if not all(refusals.values()):
        return True
    raise LoweringError(
        "no kernel can gather its rows: " + "; ".join(f"{n}: {r}" for n, r in refusals.items()),
        op="grouped_dot",
        location=op.location,
        fix='use Schedule(gather="before")',
    )


def reads_per_expert(op: Op, kernel: str, target: Target, sizes: Mapping[str, int]) -> bool:
    """Whether the kernel of a product reads what its epilogue has per expert, without copies.

    Args:
      op: the product, with operands per expert.
      kernel: "auto" or a name of `moegen.tune.grouped.GROUPED_CHOICES`.
      target: the device.
      sizes: of the program's dims.
    """
    return not all(_refusals(op, kernel, target, sizes).values())


def _refusals(op: Op, kernel: str, target: Target, sizes: Mapping[str, int]) -> dict[str, str]:
    """For each kernel that may be meant, why it cannot run a product; empty if it can."""
    able = [n for n, c in GROUPED_CHOICES.items() if c.automatic(target)]
    names = able if kernel == "auto" else [kernel]
    return {n: GROUPED_CHOICES[n].refusal(op, sizes, target) for n in names}


def _asked_for(
    op: Op, kernel: str, target: Target, sizes: Mapping[str, int], interpret: bool
) -> KernelChoice:
    choice = GROUPED_CHOICES[kernel]
    obstacle, fix = choice.refusal(op, sizes, target), 'use Schedule(kernel="auto")'
    if not obstacle and choice.interpreter and not interpret and _foreign(choice, target):
        obstacle = f"it is for {' and '.join(choice.platforms)}, the target is {target.name}"
        fix = "name such a target, or use Schedule(interpret=True) to have it interpreted here"
    if obstacle:
        raise LoweringError(
            f"{kernel} cannot run it: {obstacle}", op=str(op.name), location=op.location, fix=fix
        )
    tile = choice.tile(op, sizes, target)
    return KernelChoice(kernel, tile, "schedule", interpret and choice.interpreter)


def _foreign(choice: GroupedChoice, target: Target) -> bool:
    return target.platform not in choice.platforms


def sends_tokens(program: Program, asked: str, target: Target, overlap: int | str = 1) -> bool:
    """Whether tokens go to all devices that share experts, and not rows to those of theirs.

    Args:
      program: after choose_format.
      asked: "rows", "tokens", or "auto" for the least estimated time; where devices share memory,
        or where rows are asked to overlap, rows.
      target: the device.
      overlap: as in the schedule: what rows can save, and tokens cannot.

    Raises:
      LoweringError: if tokens are asked for and nothing travels in slots.
    """
    if asked == "rows":
        return False
    if asked == "auto" and (NETWORKS[target.name].kind == "memory" or overlap not in (1, "auto")):
        return False
    sent = send_tokens(program)
    if asked == "auto":
        saved = seconds_saved(program, overlap, target)
        return program_cost(sent, target).seconds < program_cost(program, target).seconds - saved
    if not any(op.name == "all_to_all" for op in program.ops):
        raise LoweringError(
            f"@{program.name}: nothing travels in slots that tokens could be sent for",
            fix='a mesh with an axis of experts, and format="slots"',
        )
    return True


def loop_pays(program: Program, ops: Sequence[Op]) -> bool:
    """Whether products should share a loop: what they hold of one expert fits into LOOP_BYTES."""
    held = {v for op in ops for v in (*op.inputs, *op.results) if _per_expert(v)}
    sizes = {**program.sizes, EXPERT: 1}
    return sum(value_bytes(v.type, sizes) for v in held) <= LOOP_BYTES


def _per_expert(value: Value) -> bool:
    return EXPERT in getattr(value.type, "dims", ())
