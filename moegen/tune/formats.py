"""The choice of how a route is stored: every candidate's cost, and the one with the least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moegen.errors import LoweringError, MoegenError, ScheduleError
from moegen.ir.locality import own_sizes
from moegen.ir.program import Program
from moegen.ir.types import CHOICE, EXPERT, GROUP, TOKEN, placement_of
from moegen.passes.choose_format import FORMATS, choose_format
from moegen.passes.fuse_scales import fuse_scales
from moegen.passes.select_kernels import KernelChoice, select_kernels
from moegen.tune import native
from moegen.tune.chunks import chunks_for
from moegen.tune.cost import Cost, program_cost
from moegen.tune.target import Target

RAGGED_PLATFORMS = ("tpu", "gpu")
"""Where XLA has `ragged_all_to_all`; on CPU it is not implemented (jax 0.10 to 0.12)."""
PRODUCTS = ("grouped_dot", "grouped_outer")


@dataclass(frozen=True)
class Candidate:
    """A format that was considered, for some kernel of its products: its cost, or why it cannot be.

    `kernel` is "native" for products by the custom call, else empty.
    """

    format: str
    cost: Cost | None
    refused: str = ""
    kernel: str = ""

    @property
    def name(self) -> str:
        """What tables call it: "native" is sorted rows, with products by the custom call."""
        return self.kernel or self.format


@dataclass(frozen=True)
class FormatChoice:
    """The format that was taken and all that were considered.

    `block` and `exchange` matter to sorted rows: see `choose_format`. `kernel` is "native" where
    the custom call was chosen for their products, else empty.
    """

    format: str
    block: int
    exchange: str
    forced: bool
    candidates: tuple[Candidate, ...]
    kernel: str = ""

    @property
    def stored(self) -> tuple[str, int, str]:
        """The choice as `choose_format` takes it: format, block and exchange."""
        return self.format, self.block, self.exchange

    @property
    def name(self) -> str:
        """What tables call the candidate that was taken."""
        return self.kernel or self.format

    def same_as(self, other: FormatChoice) -> bool:
        """Whether both mean one program."""
        return (self.stored, self.kernel) == (other.stored, other.kernel)

    def explain(self) -> str:
        """A table of candidates with the reason for the choice."""
        lines = [f"{'format':<8}{'GFLOP':>10}{'MB moved':>10}{'est. ms':>10}"]
        for c in self.candidates:
            if c.cost is None:
                lines.append(f"{c.name:<8}  not possible: {c.refused}")
                continue
            numbers = (c.cost.flops / 1e9, c.cost.bytes / 1e6, c.cost.seconds * 1e3)
            taken = "  <- chosen" if c.name == self.name else ""
            lines.append(f"{c.name:<8}" + "".join(f"{n:>10.3f}" for n in numbers) + taken)
        if any(c.kernel for c in self.candidates):
            lines.append("native: sorted rows, their products by a custom call in C++")
        lines.append("asked for by the schedule" if self.forced else "least estimated time")
        return "\n".join(lines)


def pick_format(
    program: Program,
    format: str,
    block: int | None,
    target: Target,
    exchange: str = "auto",
    kernel: str = "auto",
    elsewhere: str = "nobody asked for it",
    overlap: int | str = 1,
) -> FormatChoice:
    """Estimates every format on a program, joint or not; "auto" takes the cheapest.

    On a CPU with kernel "auto", sorted rows are estimated twice: with XLA's products and with the
    custom call's, which is compiled when it is chosen for the first time.

    Args:
      program: with routes.
      format: "auto" or one of FORMATS.
      block: rows that an expert's are padded to a multiple of; None: by the kernel and the load.
      target: the device.
      exchange: how sorted rows travel on a mesh.
      kernel: of grouped products, as in the schedule.
      elsewhere: why the program must do without code for this machine alone; empty if it need not.
      overlap: as in the schedule; a format in which nothing can overlap so is not possible.

    Raises:
      ScheduleError: for an unknown format, or an unknown value of the environment's MOEGEN_NATIVE.
      LoweringError: if no format can hold the program.
    """
    if format != "auto" and format not in FORMATS:
        raise ScheduleError(
            f'format "{format}" is unknown', fix=f"use auto or one of {', '.join(FORMATS)}"
        )
    way = exchange_for(exchange, target)
    ways = _ways(kernel, target)
    barred = (elsewhere or native.barred()) if kernel == "auto" and target.platform == "cpu" else ""
    found = [_candidate(program, f, k, block, way, target, barred, overlap) for f, k in ways]
    wanted = [i for i, c in enumerate(found) if format in ("auto", c.format)]
    taken = _cheapest(found, wanted)
    while taken is not None and kernel == "auto" and found[taken].kernel and native.missing():
        found[taken] = replace(found[taken], cost=None, refused=native.missing())
        taken = _cheapest(found, wanted)
    if taken is None and format == "auto":
        raise LoweringError(
            f"@{program.name}: no format can hold it: "
            + "; ".join(c.refused for c in found if not c.kernel)
        )
    chosen = found[wanted[0] if taken is None else taken]
    rows = _block(program, block, chosen.kernel, target)
    forced = format != "auto"
    return FormatChoice(chosen.format, rows, way, forced, tuple(found), chosen.kernel)


def _ways(kernel: str, target: Target) -> list[tuple[str, str]]:
    """The formats, each with the kernel that its grouped products are estimated with."""
    custom = [("sorted", native.NAME)]
    if kernel == native.NAME:
        return [(f, "") for f in FORMATS if f != "sorted"] + custom
    plain = [(f, "") for f in FORMATS]
    return plain + custom if kernel == "auto" and target.platform == "cpu" else plain


def _cheapest(found: Sequence[Candidate], wanted: Sequence[int]) -> int | None:
    """Which of the candidates has the least estimated time; None if none of them is possible."""
    seconds = {i: cost.seconds for i in wanted if (cost := found[i].cost) is not None}
    return min(seconds, key=lambda i: seconds[i]) if seconds else None


def _block(program: Program, block: int | None, kernel: str, target: Target) -> int:
    if block is not None:
        return block
    return native.BLOCK if kernel == native.NAME else default_block(program, target)


def default_block(program: Program, target: Target) -> int:
    """Rows that an expert's rows are padded to a multiple of, when nobody says."""
    sizes = program.sizes
    if target.platform != "cpu" or not {GROUP, TOKEN, CHOICE, EXPERT} <= sizes.keys():
        return target.row_block
    rows = sizes[GROUP] * sizes[TOKEN] * sizes[CHOICE] // _lists_per_expert(program)
    return balanced_block(max(rows, 1), sizes[EXPERT])


def _lists_per_expert(program: Program) -> int:
    """How many devices of a mesh have rows of one expert."""
    places = [placement_of(v.type) for v in program.inputs]
    groups = {a for place in places for a in place.axes(GROUP)}
    experts = {a for place in places for a in place.axes(EXPERT)}
    return math.prod(size for axis, size in program.mesh if axis in groups - experts)


def balanced_block(rows: int, experts: int) -> int:
    """About an eighth of the mean load and 8 or more, such that balanced routing is padded least.

    Products of fewer rows take as long: they wait for their weights.
    """
    mean = -(-rows // experts)
    if mean <= 8:
        return max(mean, 1)
    blocks = range(max(8, mean // 12), max(16, mean // 6) + 1)
    return min(reversed(blocks), key=lambda block: -(-mean // block) * block)


def _candidate(
    program: Program,
    format: str,
    kernel: str,
    block: int | None,
    exchange: str,
    target: Target,
    barred: str,
    overlap: int | str,
) -> Candidate:
    """A format with its cost, or with the reason if it cannot be, or the custom call is barred."""
    if kernel and barred:
        return Candidate(format, None, barred, kernel)
    rows = _block(program, block, kernel, target)
    try:
        lowered = choose_format(program, format, rows, exchange)
        if overlap != "auto":
            chunks_for(lowered, overlap, target)
    except MoegenError as error:
        return Candidate(format, None, error.what, kernel)
    if kernel:
        lowered = fuse_scales(lowered)
        if reason := _misfit(lowered, target):
            return Candidate(format, None, reason, kernel)
        lowered = select_kernels(lowered, lambda p, op: KernelChoice(kernel))
    return Candidate(format, program_cost(lowered, target), kernel=kernel)


def _misfit(program: Program, target: Target) -> str:
    """Why the custom call cannot run some product of a program; empty if it can."""
    products = [op for op in program.ops if op.name in PRODUCTS]
    if not products:
        return "no product is grouped"
    reasons = (native.misfit(op, own_sizes(program, op), target) for op in products)
    return next(filter(None, reasons), "")


def exchange_for(exchange: str, target: Target) -> str:
    """How sorted rows go to experts on other devices, a name of `EXCHANGES`.

    "auto" is "ragged" where there is a collective for it. Without one every device would have to
    get the rows of all the others, both ways; blocks are as long only in the worst case.
    """
    if exchange != "auto":
        return exchange
    return "ragged" if target.platform in RAGGED_PLATFORMS else "blocks"
