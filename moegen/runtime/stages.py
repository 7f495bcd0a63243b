"""The stages of compilation, in JAX's manner: trace, lower, compile."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax

from moegen.backends import xla
from moegen.backends.layer import Emitted, emit_layer
from moegen.dsl.trace import Slot, TracedLayer
from moegen.errors import LoweringError, did_you_mean
from moegen.ir import registry
from moegen.ir.locality import own_sizes
from moegen.ir.program import Literal, Operand, Program, Value
from moegen.ir.text import format_program
from moegen.ir.types import GROUP, Type
from moegen.passes.layout import Layout, make_layout
from moegen.passes.partition import Parts, partition
from moegen.passes.pipeline import STAGES, Plan, run_inference, run_pipeline
from moegen.runtime.saved import explain_saved, saved_bytes
from moegen.runtime.schedule import Schedule
from moegen.tune.choose import (
    gathers_inside,
    kernel_for,
    loop_pays,
    reads_per_expert,
    sends_tokens,
)
from moegen.tune.chunks import chunks_for
from moegen.tune.cost import Cost, program_collectives, program_cost
from moegen.tune.formats import FormatChoice, pick_format
from moegen.tune.network import Box, Collective
from moegen.tune.target import Target
from moegen.tune.tuned import tables

INFERENCE = "inference"
"""Names the program of calls without gradients, beside the stages of the joint one."""


@dataclass(frozen=True)
class Traced:
    """A layer as a program, before any decision."""

    layer: TracedLayer
    schedule: Schedule

    @property
    def program(self) -> Program:
        """The program as the author wrote it."""
        return self.layer.program

    def __str__(self) -> str:
        return format_program(self.program)

    def lower(self) -> Lowered:
        """Runs all passes.

        Raises:
          LoweringError: if the schedule cannot hold the program.
        """
        target = self.schedule.resolve_target()
        chosen: list[FormatChoice] = []

        def choose(program: Program) -> tuple[str, int, str]:
            s = self.schedule
            elsewhere = s.elsewhere()
            choice = pick_format(
                program, s.format, s.block, target, s.exchange, s.kernel, elsewhere, s.overlap
            )
            chosen.append(choice)
            return choice.stored

        tuned = tables(self.schedule.tuned)
        mesh, owners = self.schedule.mesh_axes(), [slot.owner for slot in self.layer.slots]
        layouts: list[Layout] = []

        def layout(program: Program) -> Layout | None:
            if mesh is not None:
                layouts.append(make_layout(program, mesh, owners))
            return layouts[0] if layouts else None

        plan = Plan(
            layout=layout,
            choose=choose,
            reads=lambda program, op: reads_per_expert(
                op, chosen[-1].kernel or self.schedule.kernel, target, own_sizes(program, op)
            ),
            inside=lambda program, op: gathers_inside(
                op, self.schedule.gather, self.schedule.kernel, target, own_sizes(program, op)
            ),
            decide=lambda program, op: kernel_for(
                op,
                self.schedule.kernel,
                target,
                own_sizes(program, op),
                self.schedule.interpret,
                tuned,
                chosen[-1].kernel,
            ),
            save=self.schedule.save,
            share=loop_pays,
            tokens=lambda program: sends_tokens(
                program, self.schedule.send, target, self.schedule.overlap
            ),
            chunks=lambda program: chunks_for(program, self.schedule.overlap, target),
        )
        stages = run_pipeline(self.program, plan)
        inference = None
        if mesh is None and self.schedule.format == "auto":
            choose(stages["canonicalize"])
            if not chosen[-1].same_as(chosen[0]):
                inference = run_inference(stages["canonicalize"], plan, chosen[-1].stored)
        return Lowered(
            self.layer.slots,
            stages,
            chosen[0],
            chosen[-1],
            inference,
            target,
            self.schedule,
            layouts[0] if layouts else None,
            tuple(tuned.notes),
        )


@dataclass(frozen=True)
class Lowered:
    """A layer after all passes, with the program at every stage.

    Attributes:
      slots: where each input of the program comes from in a call.
      stages: the joint program after each pass, by name.
      choice: the format that was taken for it and why.
      inference_choice: the same for calls without gradients; "auto" on one device estimates these
        alone, in all other cases it is `choice`.
      inference: the program of such calls if its format is another one, after all passes.
      target: the device it was lowered for.
      schedule: as it was asked for.
      layout: where the inputs are on the schedule's mesh, or None for one device.
      tiles: what tables of tuned tiles said of its products, if anything.
    """

    slots: tuple[Slot, ...]
    stages: dict[str, Program] = field(repr=False)
    choice: FormatChoice
    inference_choice: FormatChoice
    inference: Program | None = field(repr=False)
    target: Target
    schedule: Schedule
    layout: Layout | None = None
    tiles: tuple[str, ...] = ()

    @property
    def program(self) -> Program:
        """The program after the last pass."""
        return self.stages[STAGES[-1]]

    def as_text(self, stage: str = STAGES[-1]) -> str:
        """The program after one stage, or of "inference", as text that parses back."""
        if stage == INFERENCE:
            return format_program(self.parts.primal)
        known = (*self.stages, INFERENCE)
        if stage not in known:
            raise LoweringError(
                f'no stage "{stage}"{did_you_mean(stage, known)}',
                fix=f"use one of {', '.join(known)}",
            )
        return format_program(self.stages[stage])

    def explain(self) -> str:
        """The program after each pass, each format's estimated cost, what the backward is kept."""
        parts = [f"// after {name}\n{format_program(p)}" for name, p in self.stages.items()]
        if self.inference is not None:
            parts.append(f"// {INFERENCE}, after all passes\n{self.as_text(INFERENCE)}")
        parts += [f"// mesh: {note}\n" for note in (self.layout.notes if self.layout else ())]
        parts.append(f"// formats on {self.target.name}\n{self.choice.explain()}\n")
        if self.inference_choice is not self.choice:
            alone = self.inference_choice.explain()
            parts.append(f"// formats on {self.target.name}, {INFERENCE} alone\n{alone}\n")
        parts += [f"// tuned: {note}\n" for note in self.tiles]
        kept = explain_saved(
            self.stages["differentiate"],
            self.slots,
            self.choice.stored,
            self.schedule.save,
            self.layout,
        )
        parts.append(f"// kept for the backward\n{kept}\n")
        return "\n".join(parts)

    def cost(self, boxes: Mapping[str, Box] | None = None, *, forward: bool = False) -> Cost:
        """The estimate of one device's work, see `moegen.tune.cost`.

        Args:
          boxes: what each mesh axis is of the network; one that is not named is a ring.
          forward: of the forward alone, as training runs it, not of the backward too.
        """
        return program_cost(self._costed(forward), self.target, boxes)

    def collectives(self, *, forward: bool = False) -> list[Collective]:
        """The collectives that the program asks for."""
        return program_collectives(self._costed(forward))

    def _costed(self, forward: bool) -> Program:
        return self.parts.forward if forward else self.program

    @cached_property
    def saved(self) -> dict[Value, int]:
        """Bytes of each value that is kept for the backward, without the parameters."""
        return saved_bytes(self.program, self.slots)

    @cached_property
    def parts(self) -> Parts:
        """The program as primal, forward and backward."""
        parts = partition(self.program)
        if self.inference is None:
            return parts
        return replace(parts, primal=partition(self.inference).primal)

    @cached_property
    def emitted(self) -> Emitted:
        """The module that runs."""
        parts, form = self.parts, self.choice.name
        if self.inference is not None:
            form += f" ({self.inference_choice.name} in inference)"
        doc = f"{self.program.name}, generated by moegen: format {form}, target {self.target.name}."
        return emit_layer(
            parts.primal, parts.forward, parts.backward, xla.TEMPLATES, xla.KERNEL_NAMES, doc
        )

    def source(self) -> str:
        """The Python that runs, as a module that needs jax alone."""
        return self.emitted.source

    def compile(self) -> Compiled:
        """Executes the emitted source; tracebacks show its lines.

        Raises:
          LoweringError: if the schedule's mesh is abstract.
        """
        if isinstance(self.schedule.mesh, jax.sharding.AbstractMesh):
            raise LoweringError(
                f"@{self.program.name}: {self.schedule.mesh} has no devices to run on",
                fix="make the mesh with jax.make_mesh",
            )
        source = self.source()
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        filename = f"<moegen {self.program.name} {digest}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
        namespace: dict[str, Any] = {"__name__": f"moegen_{digest}", **self.emitted.functions}
        if self.schedule.mesh is not None:
            namespace["mesh"] = self.schedule.mesh
        exec(compile(source, filename, "exec"), namespace)
        names = tuple(n for n, _ in self.program.outputs)
        over_groups = _decides_over_groups(self.stages[STAGES[0]])
        return Compiled(
            namespace["layer"], jax.jit(namespace["layer"]), self.slots, names, over_groups
        )


@dataclass(frozen=True)
class Compiled:
    """A layer that runs.

    Attributes:
      function: the emitted `layer(*inputs) -> tuple`, differentiable.
      jitted: the same under jax.jit.
      slots: where each input comes from in a call.
      outputs: names of the outputs; the first is y.
      over_groups: whether what a group gets depends on the others.
    """

    function: Callable[..., Any] = field(repr=False)
    jitted: Callable[..., Any] = field(repr=False)
    slots: tuple[Slot, ...]
    outputs: tuple[str, ...]
    over_groups: bool = False

    def __call__(self, *inputs: Any) -> dict[str, Any]:
        """Runs on one array per slot; returns outputs by name."""
        return dict(zip(self.outputs, self.jitted(*inputs), strict=True))


def _decides_over_groups(program: Program) -> bool:
    return any(
        GROUP in registry.lookup(op.name).locality([_type(o) for o in op.operands], op.attr).whole
        for op in program.ops
    )


def _type(operand: Operand) -> Type | Literal:
    return operand if isinstance(operand, Literal) else operand.type
