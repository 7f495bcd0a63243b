"""Traces a router and an expert into one program: route, dispatch, expert, combine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moegen.dsl.declare import Argument, Expert, Router
from moegen.dsl.specs import ArraySpec, KeySpec
from moegen.dsl.traced import Traced, TracedRoute, Tracing, author_line, wrap
from moegen.errors import DtypeError, MoegenError, ShapeError, TraceError
from moegen.ir.builder import Builder
from moegen.ir.dims import Dims
from moegen.ir.program import Program, Value
from moegen.ir.rewrite import rename
from moegen.ir.types import CAPACITY, EXPERT, GROUP, Key, Tensor
from moegen.ops.named import dtype_name


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an input of the program comes from in a call of the layer.

    `owner` is router or expert for parameters, layer for the rest.
    """

    owner: str
    name: str
    role: str


@dataclass(frozen=True, slots=True)
class TracedLayer:
    """A traced layer: the program and, for each of its inputs, where it comes from."""

    program: Program
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Given:
    """Shapes and dtypes of a call: any objects with `.shape` and `.dtype`."""

    x: Any
    router: Mapping[str, Any]
    expert: Mapping[str, Any]
    inputs: Mapping[str, Any]
    key: bool


def trace_layer(router: Router, expert: Expert, given: Given) -> TracedLayer:
    """Runs both functions on traced values and returns the program they describe.

    Raises:
      MoegenError: with the author's line, for anything that does not fit.
    """
    return _LayerTrace(router, expert, given).run()


class _LayerTrace:
    def __init__(self, router: Router, expert: Expert, given: Given):
        self.router, self.expert, self.given = router, expert, given
        self.dims = Dims()
        self.builder = Builder(self.dims, locate=author_line)
        self.slots: list[Slot] = []
        self.values: list[Value] = []
        self.key: Value | None = None

    def run(self) -> TracedLayer:
        router_args = self.declare_router()
        expert_args = self.declare_expert()
        with Tracing(self.builder) as tracing:
            tracing.hidden = (GROUP,)
            route, outputs = _unpack(self.router, self.router(*router_args))
            x, where = self.values[0], self.expert.location
            soft = {} if route.dispatch is None else {"weighted": True}
            path = route.dispatch or route.value
            rows = self.builder.one("dispatch", path, x, hint="xe", location=where, **soft)
            tracing.hidden = (GROUP, EXPERT)
            y_rows = self.expert(wrap(rows), *expert_args)
            _check_rows(self.expert, y_rows)
            y = self.builder.one(
                "combine", route.value, y_rows.value, weighted=True, hint="y", location=where
            )
        program = self.builder.program(
            f"{self.router.name}_{self.expert.name}",
            self.values,
            [("y", y), *((n, v.value) for n, v in outputs.items())],
        )
        self.check_used(program)
        names = {v.value.name: n for n, v in outputs.items()} | tracing.names
        names |= {rows.name: rows.name, y.name: y.name}
        return TracedLayer(rename(program, names), tuple(self.slots))

    # --- arguments -----------------------------------------------------------------------

    def declare_router(self) -> list[Any]:
        """Binds dims from the arrays given, and returns what the router is called with."""
        first = self.router.arguments[0]
        args = [self.add(self.router, first, self.given.x, "layer", lead=(GROUP,))]
        for arg in self.router.arguments[1:]:
            if arg.role == "param":
                args.append(self.add(self.router, arg, self.param("router", arg), "router"))
            elif arg.role == "input":
                found = self.given.inputs.get(arg.name)
                if found is None and not arg.optional:
                    raise self.missing(self.router, arg, f"{arg.name}=")
                array = found is not None
                args.append(
                    self.add(self.router, arg, found, "layer", lead=(GROUP,)) if array else None
                )
            else:
                args.append(self.random_key(self.router, arg))
        return args

    def declare_expert(self) -> list[Any]:
        """Binds the expert's parameters, each with the expert dim in front."""
        first = self.expert.arguments[0]
        assert isinstance(first.spec, ArraySpec)
        self.bind_rows(first, first.spec)
        args: list[Any] = []
        for arg in self.expert.arguments[1:]:
            if arg.role == "key":
                args.append(self.random_key(self.expert, arg))
            else:
                array = self.param("expert", arg)
                args.append(self.add(self.expert, arg, array, "expert", lead=(EXPERT,)))
        return args

    def bind_rows(self, first: Argument, spec: ArraySpec) -> None:
        """The expert's rows have the width and dtype of the layer's tokens."""
        x = self.values[0].type
        assert isinstance(x, Tensor)
        if not spec.accepts(x.dtype):
            raise DtypeError(
                f"{self.expert.name}: {first.name} is declared {spec}, tokens are {x.dtype}",
                fix=f'give tokens of dtype {spec.dtype}, or declare mg.floating["..."]',
                location=self.expert.location,
            )
        if spec.dims[1] != x.dims[2]:
            raise ShapeError(
                f"{self.expert.name}: {first.name} is [C, {spec.dims[1]}], "
                f"tokens are [S, {x.dims[2]}]",
                fix="use one name for the width in both functions",
                location=self.expert.location,
            )

    def param(self, owner: str, arg: Argument) -> Any:
        declared = self.router if owner == "router" else self.expert
        arrays = self.given.router if owner == "router" else self.given.expert
        if arg.name not in arrays:
            raise self.missing(declared, arg, f'params["{owner}"]["{arg.name}"]')
        return arrays[arg.name]

    def add(
        self,
        declared: Router | Expert,
        arg: Argument,
        array: Any,
        owner: str,
        lead: tuple[str, ...] = (),
    ) -> Any:
        """Adds an input to the program, checked against its declaration."""
        assert isinstance(arg.spec, ArraySpec)
        dims = (*lead, *arg.spec.dims)
        shape, dtype = tuple(array.shape), dtype_name(array.dtype)
        what = f"{declared.name}: {arg.name} is declared {arg.spec}"
        if lead:
            what += f" with {lead[0]} in front"
        if not arg.spec.accepts(dtype):
            raise DtypeError(
                f"{what}, given is {dtype}{list(shape)}",
                fix=f"convert it to {arg.spec.dtype or 'a real dtype'}",
                location=declared.location,
            )
        if len(shape) != len(dims):
            raise ShapeError(
                f"{what}, given is {dtype}{list(shape)}",
                fix=f"give an array of {len(dims)} dims [{', '.join(dims)}]",
                location=declared.location,
            )
        for dim, n in zip(dims, shape, strict=True):
            if dim in self.dims and self.dims[dim] != n:
                raise ShapeError(
                    f"{what}, given is {dtype}{list(shape)}: {dim} is {self.dims[dim]} elsewhere, "
                    f"here it is {n}",
                    fix=f"give it {dim}={self.dims[dim]}",
                    location=declared.location,
                )
            self.dims.define(dim, n)
        value = self.builder.argument(arg.name, Tensor(dtype, dims))
        self.values.append(value)
        self.slots.append(Slot(owner, arg.name, arg.role))
        return Traced(value)

    def random_key(self, declared: Router | Expert, arg: Argument) -> Any:
        assert isinstance(arg.spec, KeySpec)
        if not self.given.key:
            if not arg.optional:
                raise self.missing(declared, arg, "key=")
            return None
        if self.key is None:
            self.key = self.builder.argument(arg.name, Key())
            self.values.append(self.key)
            self.slots.append(Slot("layer", "key", "key"))
        return wrap(self.key)

    def missing(self, declared: Router | Expert, arg: Argument, how: str) -> MoegenError:
        return TraceError(
            f"{declared.name}: {arg.name} is not given",
            fix=f"pass {how}",
            location=declared.location,
        )

    # --- afterwards ----------------------------------------------------------------------

    def check_used(self, program: Program) -> None:
        """A declared argument that nothing reads is a mistake, unless it is optional."""
        used = {*program.users(), *(v.name for v in program.returned)}
        optional = {a.name for d in (self.router, self.expert) for a in d.arguments if a.optional}
        for slot, value in zip(self.slots, self.values, strict=True):
            if value.name in used or slot.name in optional or slot.name.startswith("_"):
                continue
            owner = self.expert if slot.owner == "expert" else self.router
            raise TraceError(
                f"{owner.name}: argument {slot.name} is never used",
                fix=f"use it, remove it, or call it _{slot.name}",
                location=owner.location,
            )


def _unpack(router: Router, returned: Any) -> tuple[TracedRoute, dict[str, Traced]]:
    where = router.location
    if returned is None:
        raise TraceError(
            f"{router.name} returns nothing",
            fix="return the route, or the route and a dict of outputs",
            location=where,
        )
    route, outputs = returned if isinstance(returned, tuple) else (returned, {})
    if not isinstance(route, TracedRoute):
        raise TraceError(
            f"{router.name} returns {_kind(route)} where the route should be",
            fix="return what mg.assign gave",
            location=where,
        )
    for name, value in outputs.items():
        if not isinstance(value, Traced) or not name.isidentifier() or name == "y":
            raise TraceError(
                f'{router.name}: output "{name}" is {_kind(value)}',
                fix="outputs are traced tensors under identifiers other than y",
                location=where,
            )
    return route, outputs


def _check_rows(expert: Expert, y: Any) -> None:
    if y is None:
        raise TraceError(f"{expert.name} returns nothing", fix="return y", location=expert.location)
    if not isinstance(y, Traced):
        raise TraceError(
            f"{expert.name} returns {_kind(y)}", fix="return one tensor", location=expert.location
        )
    rows = (GROUP, EXPERT, CAPACITY)
    if y.type.dims[:3] != rows:
        raise ShapeError(
            f"{expert.name} returns [{', '.join(d for d in y.type.dims if d not in rows[:2])}]",
            fix=f"return one row per row of x: [{CAPACITY}, ...]",
            location=expert.location,
        )


def _kind(x: Any) -> str:
    return repr(x) if isinstance(x, Traced) else f"a {type(x).__name__}"


__all__ = ["Given", "Slot", "TracedLayer", "trace_layer"]
