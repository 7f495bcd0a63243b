"""The pipeline, top to bottom. The verifier runs after every pass, always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moegen.ir.program import Program
from moegen.ir.verify import verify
from moegen.passes.canonicalize import canonicalize
from moegen.passes.choose_format import choose_format
from moegen.passes.differentiate import differentiate
from moegen.passes.exchange_inside import INSIDE, overlap_inside
from moegen.passes.fuse import fuse
from moegen.passes.fuse_copies import Reads, fuse_copies
from moegen.passes.fuse_gathers import Inside, fuse_gathers
from moegen.passes.fuse_scales import fuse_scales
from moegen.passes.layout import Layout
from moegen.passes.overlap import overlap
from moegen.passes.overlap_ring import RING, overlap_ring
from moegen.passes.reassociate import reassociate
from moegen.passes.rematerialize import rematerialize
from moegen.passes.select_kernels import Decide, select_kernels
from moegen.passes.send_tokens import send_tokens
from moegen.passes.shard import shard
from moegen.passes.share_loops import Decide as Share
from moegen.passes.share_loops import share_loops

STAGES = (
    "trace",
    "canonicalize",
    "differentiate",
    "reassociate",
    "shard",
    "choose_format",
    "send_tokens",
    "overlap",
    "rematerialize",
    "fuse",
    "select_kernels",
    "share_loops",
)
"""Names of the stages in order; each but the first is a pass."""


@dataclass(frozen=True)
class Plan:
    """What the passes need to know that is not in the program.

    Attributes:
      layout: where a program's inputs are on the mesh; None for one device.
      choose: picks the format, the row block and the exchange for a program.
      decide: picks the kernel of a product.
      share: whether it pays for products to share a loop.
      save: "all" or "least", what the backward is to get from the forward.
      inside: whether a product gathers its rows itself.
      tokens: whether tokens are sent, not rows, where experts are shared.
      chunks: in how many parts slots travel to their experts, RING or INSIDE.
      reads: whether a product's kernel reads values per expert.
    """

    layout: Callable[[Program], Layout | None]
    choose: Callable[[Program], tuple[str, int, str]]
    decide: Decide
    share: Share
    save: str = "all"
    inside: Inside = lambda program, op: False
    tokens: Callable[[Program], bool] = lambda program: False
    chunks: Callable[[Program], int | str] = lambda program: 1
    reads: Reads = lambda program, op: False


def run_pipeline(program: Program, plan: Plan) -> dict[str, Program]:
    """Runs all passes; returns the program after each stage, by name, in order."""
    run = _Run({"trace": verify(program, "trace")})
    run.step("canonicalize", canonicalize)
    run.step("differentiate", lambda p: canonicalize(differentiate(p)))
    run.step("reassociate", lambda p: reassociate(p, plan.save))
    joint = run.step("shard", lambda p: shard(p, plan.layout(p)))
    run.from_format(plan, plan.choose(joint))
    return run.stages


def run_inference(program: Program, plan: Plan, stored: tuple[str, int, str]) -> Program:
    """Runs the passes that a program without a backward needs, on one device.

    Args:
      program: after `canonicalize`.
      plan: as for the joint program; it is not asked for the format.
      stored: the format, the row block and the exchange.
    """
    run = _Run({"canonicalize": program})
    return run.from_format(plan, stored)


@dataclass
class _Run:
    """The stages so far."""

    stages: dict[str, Program]

    def step(self, name: str, run: Callable[[Program], Program]) -> Program:
        """Adds a stage made of the last one."""
        before = next(reversed(self.stages.values()))
        self.stages[name] = verify(run(before), name)
        return self.stages[name]

    def from_format(self, plan: Plan, stored: tuple[str, int, str]) -> Program:
        """The passes from `choose_format` on; returns the program after the last."""
        self.step("choose_format", lambda p: canonicalize(choose_format(p, *stored)))
        self.step("send_tokens", lambda p: canonicalize(send_tokens(p)) if plan.tokens(p) else p)
        self.step("overlap", lambda p: _in_chunks(p, plan.chunks(p)))
        self.step("rematerialize", lambda p: rematerialize(p, plan.save))
        self.step("fuse", lambda p: _fused(p, plan))
        self.step("select_kernels", lambda p: select_kernels(p, plan.decide))
        return self.step("share_loops", lambda p: share_loops(p, plan.share))


def _fused(program: Program, plan: Plan) -> Program:
    gathered = fuse_gathers(fuse(fuse_scales(program)), plan.inside)
    return fuse_copies(gathered, plan.reads)


def _in_chunks(program: Program, chunks: int | str) -> Program:
    ways = {RING: overlap_ring, INSIDE: overlap_inside}
    cut = ways[chunks](program) if isinstance(chunks, str) else overlap(program, chunks)
    return program if cut is program else canonicalize(cut)
