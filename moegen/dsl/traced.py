"""Values while a function is traced, and the context that records what is done to them."""

from __future__ import annotations

import os
import re
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

from moegen.errors import DimError, Location, MoegenError, TraceError
from moegen.ir.builder import Builder
from moegen.ir.program import Literal, Operand, Value
from moegen.ir.types import Key, Route, Tensor

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INTERNAL = tuple(os.path.join(_ROOT, d) + os.sep for d in ("dsl", "ir", "ops", "runtime"))
_STATE = threading.local()


class Tracing:
    """The trace in progress: the builder, which dims ride along, how many draws were made."""

    def __init__(self, builder: Builder):
        self.builder = builder
        self.hidden: tuple[str, ...] = ()
        self.streams = 0
        self.names: dict[str, str] = {}

    def next_stream(self) -> int:
        """Numbers the random draws of a program."""
        self.streams += 1
        return self.streams - 1

    def __enter__(self) -> Tracing:
        self._outer = getattr(_STATE, "tracing", None)
        self._profile = sys.getprofile()
        _STATE.tracing = self
        if self.may_profile:
            sys.setprofile(self._note_locals)
        return self

    def __exit__(self, *_: object) -> None:
        if self.may_profile:
            sys.setprofile(self._profile)
        _STATE.tracing = self._outer

    @property
    def may_profile(self) -> bool:
        """A profiler written in C, such as cProfile, could not be put back afterwards.

        Then values keep the names of their ops, which changes nothing else.
        """
        return self._profile is None or callable(self._profile)

    def _note_locals(self, frame: FrameType, event: str, arg: Any) -> None:
        """Remembers the author's names: on return, what each local variable holds.

        Comprehensions are left out: they have frames of their own in Python 3.11 only, and
        programs shall not depend on the version.
        """
        code = frame.f_code
        if event != "return" or code.co_name.endswith("comp>") or is_internal(code.co_filename):
            return
        for name, held in frame.f_locals.items():
            if isinstance(held, Traced | TracedRoute) and name != "_":
                self.names.setdefault(held.value.name, name)


def current() -> Tracing:
    """Returns the trace in progress.

    Raises:
      TraceError: outside of a router or expert.
    """
    tracing = getattr(_STATE, "tracing", None)
    if tracing is None:
        raise TraceError(
            "moegen's functions describe routers and experts; they do not compute",
            fix="call them inside a function under @moegen.router or @moegen.expert",
            location=author_line(),
        )
    return tracing  # type: ignore[no-any-return]


def is_internal(filename: str) -> bool:
    """Whether a file is part of the tracer, so that no author wrote the line."""
    return filename.startswith(_INTERNAL)


def author_line() -> Location | None:
    """Returns the innermost line outside the tracer: the one the author wrote."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return None
    return Location(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def located(error: MoegenError) -> MoegenError:
    """Adds the author's line to an error raised by the tracer itself."""
    return error.located(None, author_line())


def operand(x: Any) -> Operand:
    """Accepts a traced value or a Python number as an operand.

    Raises:
      TraceError: for arrays and other objects.
    """
    if isinstance(x, Traced | TracedRoute | TracedKey):
        return x.value
    if isinstance(x, bool | int | float):
        return Literal(x)
    raise located(
        TraceError(
            f"a {type(x).__name__} cannot be used in a traced function",
            fix="use traced values and Python numbers; declare arrays as arguments",
        )
    )


def traced(x: Any) -> Traced:
    """Returns x if it is a traced tensor.

    Raises:
      TraceError: for numbers, arrays, routes and keys, and outside of a trace.
    """
    current()
    if not isinstance(x, Traced):
        raise located(
            TraceError(
                f"a {type(x).__name__} cannot be used in a traced function here",
                fix="use a traced tensor; declare arrays as arguments",
            )
        )
    return x


def emit(name: str, *operands: Any, **attrs: Any) -> Any:
    """Records an op and returns its traced result, or a tuple of them."""
    tracing = current()
    try:
        results = tracing.builder.emit(
            name, *(operand(o) for o in operands), location=author_line(), **attrs
        )
    except MoegenError as error:
        error.op = error.op and _in_authors_names(error.op)
        raise
    traced = tuple(wrap(r) for r in results)
    return traced[0] if len(traced) == 1 else traced


def _in_authors_names(text: str) -> str:
    """Rewrites %values as the author's local variables, as far as they are bound yet."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_internal(frame.f_code.co_filename):
        frame = frame.f_back
    held = frame.f_locals.items() if frame is not None else ()
    names = {v.value.name: n for n, v in held if isinstance(v, Traced | TracedRoute)}
    return re.sub(r"%(\w+)", lambda m: f"%{names.get(m[1], m[1])}", text)


def wrap(value: Value) -> Any:
    """Gives an IR value to the author."""
    if isinstance(value.type, Route):
        return TracedRoute(value)
    return TracedKey(value) if isinstance(value.type, Key) else Traced(value)


def visible(over: tuple[str, ...]) -> tuple[str, ...]:
    """Checks that none of the dims rides along, and returns them.

    Raises:
      DimError: for the group dim, and in experts for the expert dim.
    """
    for dim in over:
        if dim in current().hidden:
            raise located(
                DimError(
                    f'the dim "{dim}" rides along and cannot be named',
                    fix="a router sees one group, an expert sees its own rows",
                )
            )
    return over


class TracedKey:
    """A random key while tracing; give it to `mg.normal` or `mg.uniform`."""

    def __init__(self, value: Value):
        self.value = value


class TracedRoute:
    """A routing decision while tracing; return it from the router.

    `dispatch` is the route that brings tokens to slots where it is another one: in soft
    routing, tokens are mixed by weights of their own.
    """

    def __init__(self, value: Value, dispatch: Value | None = None):
        self.value = value
        self.dispatch = dispatch


class Traced:
    """A tensor while tracing. Arithmetic records ops; its elements cannot be looked at."""

    __array_priority__ = 1000
    __hash__ = object.__hash__

    def __init__(self, value: Value):
        self.value = value

    @property
    def type(self) -> Tensor:
        """The tensor type, riding dims included."""
        assert isinstance(self.value.type, Tensor)
        return self.value.type

    @property
    def dtype(self) -> str:
        """The element type, such as "f32"."""
        return self.type.dtype

    def __repr__(self) -> str:
        return f"{self.value}: {self.value.type}"

    def __add__(self, other: Any) -> Any:
        return emit("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return emit("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return emit("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return emit("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return emit("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return emit("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return emit("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return emit("div", other, self)

    def __mod__(self, other: Any) -> Any:
        return emit("mod", self, other)

    def __neg__(self) -> Any:
        return emit("neg", self)

    def __eq__(self, other: object) -> Any:
        return emit("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return emit("ne", self, other)

    def __lt__(self, other: Any) -> Any:
        return emit("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return emit("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return emit("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return emit("ge", self, other)

    def __and__(self, other: Any) -> Any:
        return emit("logical_and", self, other)

    def __or__(self, other: Any) -> Any:
        return emit("logical_or", self, other)

    def __invert__(self) -> Any:
        return emit("logical_not", self)

    def __bool__(self) -> NoReturn:
        raise located(
            TraceError(
                f"a branch depends on {self!r}, which is not known while tracing",
                fix="select with mg.where(condition, a, b), or branch on a setting",
            )
        )

    def _concrete(self, what: str) -> NoReturn:
        raise located(
            TraceError(
                f"{what} needs the elements of {self!r}, which are not known while tracing",
                fix="use moegen's functions, or mg.call for a JAX function",
            )
        )

    def __float__(self) -> float:
        self._concrete("float()")

    def __int__(self) -> int:
        self._concrete("int()")

    def __index__(self) -> int:  # noqa: PLE0305 - it always raises
        self._concrete("an index")

    def __iter__(self) -> Any:
        self._concrete("iteration")

    def __len__(self) -> int:  # noqa: PLE0303 - it always raises
        self._concrete("len()")

    def __getitem__(self, item: Any) -> Any:
        self._concrete("indexing")

    def __array__(self, *_: Any, **__: Any) -> Any:
        self._concrete("a numpy or jax.numpy function")

    @property
    def __jax_array__(self) -> Any:  # JAX asks whether it is there, and would not call it
        self._concrete("a jax.numpy function")
