"""`@moegen.router` and `@moegen.expert`: functions declared, read, and bound to settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from moegen.dsl.specs import ArraySpec, KeySpec
from moegen.errors import DimError, Location, TraceError, did_you_mean
from moegen.ir.types import CAPACITY, EXPERT, GROUP, TOKEN


@dataclass(frozen=True, slots=True)
class Argument:
    """A declared argument. `role` is tokens, rows, param, input or key.

    The first argument of a router is its tokens, of an expert its rows. Of the others, one
    with the token dim is an input, given at every call; the rest are parameters.
    """

    name: str
    spec: ArraySpec | KeySpec
    role: str
    optional: bool


@dataclass(frozen=True)
class Declared:
    """A declared router or expert.

    Attributes:
      fn: the author's function, called once per shape to trace it.
      arguments: positional arguments, in order.
      settings: keyword-only arguments with the values in force; part of the cache key.
    """

    fn: Callable[..., Any]
    arguments: tuple[Argument, ...]
    settings: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.fn.__name__)

    @property
    def location(self) -> Location:
        """Where the function is defined."""
        code = inspect.unwrap(self.fn).__code__
        return Location(code.co_filename, code.co_firstlineno, self.name)

    @property
    def params(self) -> tuple[Argument, ...]:
        """The arguments that are parameters."""
        return tuple(a for a in self.arguments if a.role == "param")

    def bind(self, **settings: Any) -> Any:
        """Returns a copy with other settings, for example `noisy_top_k.bind(k=1)`.

        Raises:
          TraceError: if a name is not one of the keyword-only arguments.
        """
        known = dict(self.settings)
        for name in settings:
            if name not in known:
                raise TraceError(
                    f"{self.name} has no setting {name}{did_you_mean(name, known)}",
                    fix=f"settings are {', '.join(known) or 'none'}",
                    location=self.location,
                )
        return replace(self, settings=tuple((known | settings).items()))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the author's function, so that one router can use another while traced."""
        return self.fn(*args, **{**dict(self.settings), **kwargs})

    def __hash__(self) -> int:
        return hash((self.fn, repr(self.settings)))


class Router(Declared):
    """A router: `(x, parameters..., inputs..., key) -> route` or `(route, outputs)`."""


class Expert(Declared):
    """An expert: `(x, parameters..., key) -> y`, row by row of x."""


def router(fn: Callable[..., Any]) -> Router:
    """Declares a router, written for one group of tokens x[S, D].

    It returns a route (see `moegen.assign`), or a route and a dict of further outputs,
    such as losses. The group dim G rides along: never name it.
    """
    return Router(fn, _arguments(fn, first="tokens", hidden=(GROUP,)), _settings(fn))


def expert(fn: Callable[..., Any]) -> Expert:
    """Declares an expert, written for the rows x[C, D] of one expert.

    It returns y[C, ...]. The expert dim E rides along on rows and parameters: never name it.
    """
    return Expert(fn, _arguments(fn, first="rows", hidden=(GROUP, EXPERT)), _settings(fn))


def _arguments(fn: Callable[..., Any], first: str, hidden: tuple[str, ...]) -> tuple[Argument, ...]:
    where = Location(fn.__code__.co_filename, fn.__code__.co_firstlineno, fn.__name__)
    try:
        signature = inspect.signature(fn, eval_str=True)
    except NameError as error:
        raise TraceError(f"an annotation cannot be read: {error}", location=where) from None
    found: list[Argument] = []
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            continue
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TraceError(
                f"{fn.__name__}: *{p.name} cannot be traced",
                fix="list every argument with its type",
                location=where,
            )
        found.append(_argument(fn, p, first if not found else "", hidden, where))
    if not found or found[0].role not in ("tokens", "rows"):
        raise TraceError(
            f"{fn.__name__} needs x as its first argument",
            fix='for example x: mg.f32["S D"]',
            location=where,
        )
    return tuple(found)


def _argument(
    fn: Callable[..., Any],
    p: inspect.Parameter,
    first: str,
    hidden: tuple[str, ...],
    where: Location,
) -> Argument:
    spec = p.annotation
    if not isinstance(spec, ArraySpec | KeySpec):
        raise TraceError(
            f"{fn.__name__}: argument {p.name} has no type",
            fix=f'annotate it, for example {p.name}: mg.f32["S D"]; settings go after a *',
            location=where,
        )
    if p.default not in (None, p.empty):
        raise TraceError(
            f"{fn.__name__}: argument {p.name} has default {p.default!r}",
            fix="only None is allowed (an optional argument); settings go after a *",
            location=where,
        )
    if isinstance(spec, KeySpec):
        return Argument(p.name, spec, "key", p.default is None)
    lead = CAPACITY if "rows" in (first,) or EXPERT in hidden else TOKEN
    _check_dims(fn, p.name, spec, hidden, where)
    if first:
        if spec.dims[:1] != (lead,) or len(spec.dims) != 2:
            raise DimError(
                f"{fn.__name__}: {p.name}: {spec} must be [{lead}, D]",
                fix=f'write {p.name}: mg.{spec.dtype or "floating"}["{lead} D"]',
                location=where,
            )
        return Argument(p.name, spec, first, False)
    per_token = lead in spec.dims
    if per_token and EXPERT in hidden:
        raise DimError(
            f"{fn.__name__}: {p.name}: {spec} has the row dim {CAPACITY}",
            fix="only the first argument of an expert has rows; the others are weights",
            location=where,
        )
    return Argument(p.name, spec, "input" if per_token else "param", p.default is None)


def _check_dims(
    fn: Callable[..., Any], name: str, spec: ArraySpec, hidden: tuple[str, ...], where: Location
) -> None:
    for dim in hidden:
        if dim in spec.dims:
            raise DimError(
                f'{fn.__name__}: {name}: {spec} names "{dim}", which rides along by itself',
                fix=f"leave {dim} out",
                location=where,
            )


def _settings(fn: Callable[..., Any]) -> tuple[tuple[str, Any], ...]:
    where = Location(fn.__code__.co_filename, fn.__code__.co_firstlineno, fn.__name__)
    settings = []
    for p in inspect.signature(fn).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            if p.default is p.empty:
                raise TraceError(
                    f"{fn.__name__}: setting {p.name} has no default",
                    fix="give it one; bind() changes it",
                    location=where,
                )
            settings.append((p.name, p.default))
    return tuple(settings)
