"""The emitter: a program as straight-line Python that needs jax alone."""

from __future__ import annotations

import ast
import inspect
import keyword
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from moegen.errors import LoweringError
from moegen.ir.program import Literal, Op, Operand, Program, Value
from moegen.ir.types import NARROW, Tensor, placement_of

_RESERVED = frozenset(
    [
        *keyword.kwlist,
        *("jax", "jnp", "primal", "forward", "backward", "layer"),
        *("residuals", "cotangents", "acc", "arg", "work"),
    ]
)
_COMMENT_COLUMN = 78
_CALLEE = "fn_"
_KERNELS = "moegen.kernels."
_ALWAYS = ("import jax", "import jax.numpy as jnp")

Template = Callable[["Emitter", Op], "list[str]"]
"""Writes the statements of one op."""


@dataclass
class Emitter:
    """State while a module is written.

    Attributes:
      program: gives dims and names.
      templates: how each op is written on this backend.
      reserved: names that values must not take, such as those of kernels.
      helpers: kernel functions the module has to contain, in order of first use.
      functions: local functions of `mg.call` that the module names, by their name in it.
      imports: lines that import the other functions of `mg.call`.
      callees: the names in the module of all functions of `mg.call`.
      parts: on a mesh, the names of sizes on one device, with how they are computed.
    """

    program: Program
    templates: dict[str, Template]
    reserved: frozenset[str] = frozenset()
    helpers: dict[str, Callable[..., Any]] = field(default_factory=dict)
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    imports: dict[str, None] = field(default_factory=dict)
    callees: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)

    def name(self, value: Value) -> str:
        """The Python name of a value."""
        plain = value.name.rstrip("_")  # `acc` becomes `acc_`, so `acc_` becomes `acc__`
        taken = plain in _RESERVED | self.reserved or plain in self.program.sizes
        return f"{value.name}_" if taken or plain.startswith(_CALLEE) else value.name

    def callee(self, function: str, hint: str) -> str:
        """The name of a function of `mg.call` in the module: no value and no other has it."""
        if function not in self.callees:
            plain = "".join(c if c.isalnum() else "_" for c in hint).strip("_")
            name, n = f"{_CALLEE}{plain}", 1
            while name in self.callees.values():
                n += 1
                name = f"{_CALLEE}{plain}_{n}"
            self.callees[function] = name
        return self.callees[function]

    def results(self, op: Op) -> str:
        """The left-hand side of an assignment."""
        return ", ".join(self.name(r) for r in op.results)

    def operand(self, operand: Operand) -> str:
        """A name or a number."""
        if isinstance(operand, Value):
            return self.name(operand)
        return literal(operand)

    def aligned(self, operand: Operand, want: tuple[str, ...]) -> str:
        """An expression that broadcasts against dims `want`."""
        if not isinstance(operand, Value):
            return self.operand(operand)
        return aligned(self.name(operand), dims_of(operand), want)

    def size(self, dim: str, value: Value) -> str:
        """The size that a dim of a value has on one device: G, or G_data for a part of it."""
        axes = placement_of(value.type).axes(dim)
        if not axes:
            return dim
        devices = math.prod(dict(self.program.mesh)[a] for a in axes)
        name = "_".join((dim, *axes))
        while name in self.program.sizes:
            name += "_"
        self.parts[name] = f"{dim} // {devices}"
        return name

    def shape(self, dims: Sequence[str], value: Value) -> str:
        """The shape that a value has on one device, by dim names: (G, S, E)."""
        sizes = [self.size(dim, value) for dim in dims]
        return f"({', '.join(sizes)}{',' if len(dims) == 1 else ''})"

    def use(self, function: Callable[..., Any]) -> str:
        """Adds a kernel function to the module and returns its name."""
        self.helpers.setdefault(function.__name__, function)
        return function.__name__

    def statements(self, ops: Sequence[Op]) -> list[str]:
        """The body of a function, with the author's line at the end of each op."""
        lines: list[str] = []
        for op in ops:
            template = self.templates.get(op.name)
            if template is None:
                raise LoweringError(
                    f"{op.name} cannot be emitted",
                    fix="run choose_format first: routes have no form of their own",
                    location=op.location,
                )
            lines += self.located(op, template(self, op))
        return lines

    def located(self, op: Op, written: list[str]) -> list[str]:
        """The statements of an op with the author's line at the end."""
        if not op.location:
            return written
        return [*written[:-1], f"{written[-1]:<{_COMMENT_COLUMN}}  # {op.location}"]


def emit_function(
    name: str, arguments: Sequence[str], statements: Sequence[str], returns: str
) -> str:
    """Writes one function."""
    body = [*statements, f"return {returns}"]
    head = f"def {name}({', '.join(arguments)}):"
    return "\n".join([head, *(f"    {line}".rstrip() for line in body)])


def emit_module(emitter: Emitter, functions: Sequence[str], doc: str, tail: str) -> str:
    """Puts docstring, imports, dims, kernels and functions together."""
    callees = with_callees(emitter.helpers)
    needed = dict.fromkeys((*_kernel_imports(callees), *emitter.imports))
    std = [line for line in needed if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    imports = [*std, *_ALWAYS, *(line for line in needed if line not in std)]
    local = [f"# {n}: a local function of the router or expert" for n in emitter.functions]
    dims = [f"{n} = {size}" for n, size in emitter.program.dims]
    if emitter.parts:
        dims += ["# parts on one device", *(f"{n} = {s}" for n, s in emitter.parts.items())]
    helpers = [inspect.getsource(h).rstrip() for h in callees]
    parts = [
        f'"""{doc}"""',
        "\n".join(imports),
        "\n".join(["# dims", *dims, *local]),
        *helpers,
        *functions,
        tail,
    ]
    return "\n\n\n".join(parts) + "\n"


def _kernel_imports(helpers: Sequence[Callable[..., Any]]) -> list[str]:
    """The imports of the kernels' own files that the kernels use; jax and jnp are there anyway."""
    lines: dict[str, None] = {}
    for helper in helpers:
        used = {
            n.id for n in ast.walk(ast.parse(inspect.getsource(helper))) if isinstance(n, ast.Name)
        }
        for node in ast.parse(inspect.getsource(sys.modules[helper.__module__])).body:
            if isinstance(node, ast.Import | ast.ImportFrom) and not _own(node):
                node.names = [a for a in node.names if (a.asname or a.name.split(".")[0]) in used]
                lines.update({ast.unparse(node): None} if node.names else {})
    return [line for line in lines if line not in _ALWAYS]


def _own(node: ast.Import | ast.ImportFrom) -> bool:
    return isinstance(node, ast.ImportFrom) and str(node.module).startswith("moegen.")


def with_callees(helpers: dict[str, Callable[..., Any]]) -> list[Callable[..., Any]]:
    """Orders kernel functions so that each stands below those it calls.

    Raises:
      LoweringError: if one reads a constant of its file, which an emitted module would lack.
    """
    ordered: dict[str, Callable[..., Any]] = {}

    def visit(function: Callable[..., Any]) -> None:
        for called in _names(function.__code__):
            other = function.__globals__.get(called)
            if other is not None and not (callable(other) or inspect.ismodule(other)):
                raise LoweringError(
                    f"{function.__name__} reads {called}, which emitted modules lack",
                    fix="make it an argument, or compute it in a function",
                )
            # `jax.nn.gelu` in our `gelu` has the name of the function itself.
            if other is function or not inspect.isfunction(other):
                continue
            if other.__module__.startswith(_KERNELS):
                visit(other)
        ordered.setdefault(function.__name__, function)

    for function in helpers.values():
        visit(function)
    return list(ordered.values())


def _names(code: CodeType) -> list[str]:
    """The global names that a function and those inside it read."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return [*code.co_names, *(name for c in inner for name in _names(c))]


def dims_of(value: Value) -> tuple[str, ...]:
    """The dims of a tensor value."""
    if not isinstance(value.type, Tensor):
        raise LoweringError(f"{value} is a {value.type}, not a tensor")
    return value.type.dims


def is_narrow(value: Value) -> bool:
    """Whether a value is stored as i8 or f8e4m3, as weights may be."""
    return isinstance(value.type, Tensor) and value.type.dtype in NARROW


def widened(text: str, value: Value, like: str) -> str:
    """An operand of a product; in the dtype of the array `like` where its own is narrow."""
    return f"{text}.astype({like}.dtype)" if is_narrow(value) else text


def literal(value: Literal) -> str:
    """A number as Python source."""
    text = repr(value.value)
    return {"inf": "jnp.inf", "-inf": "-jnp.inf", "nan": "jnp.nan"}.get(text, text)


def aligned(name: str, have: tuple[str, ...], want: tuple[str, ...]) -> str:
    """Transposes and expands by dim names, as little as broadcasting needs."""
    order = [d for d in want if d in have]
    if tuple(order) != have:
        name = f"jnp.transpose({name}, {tuple(have.index(d) for d in order)})"
    if not order:
        return name
    inner = want[want.index(order[0]) :]
    if len(order) == len(inner):
        return name
    return f"{name}[{', '.join(':' if d in have else 'None' for d in inner)}]"
