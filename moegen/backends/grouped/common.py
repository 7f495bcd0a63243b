"""What the files of grouped kernels share: the two templates of a kernel, and operands in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from moegen.backends.source import Emitter, dims_of
from moegen.ir.program import Op, Value
from moegen.ir.types import EXPERT


@dataclass(frozen=True)
class GroupedKernel:
    """How one kernel's products are written.

    Attributes:
      name: as in the attribute `kernel` of an op.
      dot: writes a `grouped_dot` with its epilogue.
      outer: writes a `grouped_outer`.
      gathered: writes a `gathered_dot`, if the kernel gathers.
      modules: where the functions are that the two use.
    """

    name: str
    dot: Callable[[Emitter, Op], list[str]]
    outer: Callable[[Emitter, Op], list[str]]
    modules: tuple[ModuleType, ...]
    gathered: Callable[[Emitter, Op], list[str]] | None = None


def experts_first(e: Emitter, value: Value) -> str:
    """The value with the expert dim in front."""
    return e.aligned(value, (EXPERT, *without(dims_of(value), EXPERT)))


def own_sizes(e: Emitter, sizes: Value) -> str:
    """Rows per expert, on a mesh those of this device's own list."""
    return f"{e.name(sizes)}[0]" if len(dims_of(sizes)) > 1 else e.name(sizes)


def without(dims: tuple[str, ...], dim: str) -> tuple[str, ...]:
    """All dims but one."""
    return tuple(d for d in dims if d != dim)


def outer_operands(op: Op) -> tuple[Value, Value]:
    """Both operands of a `grouped_outer`, in the order of their dims in the result."""
    a, b, _ = op.inputs
    free = without(dims_of(op.result), EXPERT)
    return (a, b) if dims_of(a)[1] == free[0] else (b, a)
