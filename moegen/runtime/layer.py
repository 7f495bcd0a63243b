"""`moegen.compile`: a router and an expert as one layer, specialised per shape."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from moegen.dsl.declare import Argument, Declared, Expert, Router
from moegen.dsl.specs import ArraySpec, initialize
from moegen.dsl.trace import Given, Slot, trace_layer
from moegen.errors import RecompileError, ShapeError, TraceError, did_you_mean
from moegen.ir.types import EXPERT, TOKEN
from moegen.ops.named import JAX_DTYPES
from moegen.runtime.codes import constant
from moegen.runtime.schedule import Schedule
from moegen.runtime.stages import Compiled, Lowered, Traced

ALIASES = {"experts": EXPERT, "hidden": "F"}
"""Friendlier names for dims in `init` and `lower`."""
_GUARD = threading.local()


def compile(  # noqa: A001 - the field's word
    router: Router, expert: Expert, schedule: Schedule | None = None
) -> Layer:
    """Makes a layer of a router and an expert; programs are compiled at the first call.

    Args:
      router: declared with @moegen.router, settings bound by `.bind()`.
      expert: declared with @moegen.expert.
      schedule: how it is lowered; the default chooses by cost.

    Raises:
      TraceError: if the arguments are not a router and an expert.
    """
    for what, kind in ((router, Router), (expert, Expert)):
        if not isinstance(what, kind):
            raise TraceError(
                f"{getattr(what, '__name__', what)!s} is not a {kind.__name__.lower()}",
                fix=f"declare it with @moegen.{kind.__name__.lower()}",
            )
    return Layer(router, expert, schedule or Schedule())


@contextlib.contextmanager
def no_recompile() -> Iterator[None]:
    """Within this context, a call that would compile a new program raises RecompileError."""
    before = getattr(_GUARD, "active", False)
    _GUARD.active = True
    try:
        yield
    finally:
        _GUARD.active = before


@dataclass(frozen=True)
class Layer:
    """A Mixture-of-Experts layer.

    Call it as `y, aux = layer(params, x, key=key)`; it works under jit, grad and vmap.
    Programs are kept per shapes, dtypes and schedule.
    """

    router: Router
    expert: Expert
    schedule: Schedule = field(default_factory=Schedule)
    _programs: dict[Any, Compiled] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self, params: Mapping[str, Any], x: Any, *, key: Any = None, **inputs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Runs the layer.

        Args:
          params: {"router": {...}, "expert": {...}}, arrays by argument name; experts'
            arrays have the expert dim in front.
          x: tokens [G, S, D], or [S, D] for one group.
          key: a random key, or None for a deterministic call.
          **inputs: the router's per-token inputs, [G, S, ...] (or [S, ...] for one group).

        Returns:
          y with the shape of x (but the expert's output width), and the router's outputs
          by name, each with G in front unless there is one group without a group dim.

        Raises:
          MoegenError: for anything that does not fit, with the author's line and the fix.
        """
        params, x, inputs, single = _grouped(params, x, inputs)
        groups = x.shape[0]
        x, inputs = _even(x, inputs, self.schedule.group_parts())
        compiled = self._program(params, x, key, inputs)
        if compiled.over_groups and groups != x.shape[0]:
            parts = self.schedule.group_parts()
            raise ShapeError(
                f"{self.router.name}: G={groups} has no {parts} equal parts for the mesh, and "
                "groups that fill it up would take places in the buffers that all share",
                fix=f"a multiple of {parts} groups",
                location=self.router.location,
            )
        outputs = compiled(*(_pick(s, params, x, key, inputs) for s in compiled.slots))
        if single:
            outputs = {n: v[0] for n, v in outputs.items()}
        elif groups != x.shape[0]:
            outputs = {n: v[:groups] for n, v in outputs.items()}
        y = outputs.pop("y")
        return y, outputs

    def trace(
        self, *args: Any, key: Any = None, inputs: Mapping[str, Any] | None = None, **dims: int
    ) -> Traced:
        """Traces for these shapes: `trace(params, x, key=key)` or `trace(x, experts=8, ...)`.

        Arrays may be jax.ShapeDtypeStruct. With x alone, the sizes of the other dims are
        given by name, and parameters get their declared dtypes.
        """
        params, x = args if len(args) == 2 else (self.abstract_params(args[0], **dims), args[0])
        params, x, inputs, _ = _grouped(params, x, dict(inputs or {}))
        x, inputs = _even(x, inputs, self.schedule.group_parts())
        given = Given(x, params["router"], params["expert"], inputs, key is not None)
        return Traced(trace_layer(self.router, self.expert, given), self.schedule)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Traces and runs all passes; arguments as for `trace`."""
        return self.trace(*args, **kwargs).lower()

    def init(self, key: Any, x: Any, **dims: int) -> dict[str, dict[str, Any]]:
        """Initialises parameters for tokens like x.

        Args:
          key: a random key.
          x: tokens [..., S, D], or any object with their shape and dtype.
          **dims: sizes by dim name; `experts` stands for E, `hidden` for F.

        Returns:
          {"router": {...}, "expert": {...}}. Each expert has its own draw.
        """
        sizes = self._sizes(x, dims)
        owners = (("router", self.router), ("expert", self.expert))
        params: dict[str, dict[str, Any]] = {}
        for n, (owner, declared) in enumerate(owners):
            made = {}
            for i, arg in enumerate(declared.params):
                one = jax.random.fold_in(jax.random.fold_in(key, n), i)
                made[arg.name] = self._init_one(declared, arg, one, sizes, x)
            params[owner] = made
        return params

    def abstract_params(self, x: Any, **dims: int) -> dict[str, dict[str, Any]]:
        """Shapes and dtypes of the parameters, without making them."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.eval_shape(lambda k: self.init(k, struct, **dims), key)  # type: ignore[no-any-return]

    @property
    def compiled_programs(self) -> int:
        """How many programs this layer has compiled."""
        return len(self._programs)

    # --- inside --------------------------------------------------------------------------

    def _program(self, params: Any, x: Any, key: Any, inputs: dict[str, Any]) -> Compiled:
        self._check_names(params, inputs)
        cache_key = _signature(params, x, key, inputs, self.schedule)
        if cache_key not in self._programs:
            if getattr(_GUARD, "active", False):
                raise RecompileError(
                    f"{self.router.name}: a call with x {x.dtype}{list(x.shape)} would compile "
                    f"program number {self.compiled_programs + 1}",
                    fix="keep shapes and dtypes the same, for example by padding the batch",
                )
            given = Given(x, params["router"], params["expert"], inputs, key is not None)
            traced = Traced(trace_layer(self.router, self.expert, given), self.schedule)
            self._programs[cache_key] = traced.lower().compile()
        return self._programs[cache_key]

    def _check_names(self, params: Any, inputs: dict[str, Any]) -> None:
        known = [a.name for a in self.router.arguments if a.role == "input"]
        for name in inputs:
            if name not in known:
                raise TraceError(
                    f"{self.router.name} has no input {name}{did_you_mean(name, known)}",
                    fix=f"inputs are {', '.join(known) or 'none'}",
                    location=self.router.location,
                )
        if not isinstance(params, Mapping) or set(params) != {"router", "expert"}:
            raise TraceError(
                'params must be {"router": {...}, "expert": {...}}',
                fix="take them from layer.init, or build that dict",
            )

    def _sizes(self, x: Any, dims: Mapping[str, int]) -> dict[str, int]:
        first = self.router.arguments[0].spec
        assert isinstance(first, ArraySpec)
        sizes = dict(zip((TOKEN, first.dims[-1]), x.shape[-2:], strict=True))
        for name, size in dims.items():
            dim = ALIASES.get(name, name)
            if sizes.setdefault(dim, size) != size:
                raise ShapeError(f"{name}={size}, x has {dim}={sizes[dim]}", fix="leave it out")
        return sizes

    def _init_one(
        self, declared: Declared, arg: Argument, key: Any, sizes: Mapping[str, int], x: Any
    ) -> Any:
        spec = arg.spec
        assert isinstance(spec, ArraySpec)
        lead = (EXPERT,) if declared is self.expert else ()
        missing = [d for d in (*lead, *spec.dims) if d not in sizes]
        if missing:
            raise ShapeError(
                f"{declared.name}: the size of {missing[0]} is not known for {arg.name}: {spec}",
                fix=f"pass {_alias(missing[0])}=",
                location=declared.location,
            )
        dtype = JAX_DTYPES[spec.dtype] if spec.dtype else x.dtype
        shape = tuple(sizes[d] for d in spec.dims)
        if not lead:
            return initialize(spec, key, shape, dtype)
        keys = jax.random.split(key, sizes[EXPERT])
        return jax.vmap(lambda k: initialize(spec, k, shape, dtype))(keys)


def _grouped(params: Any, x: Any, inputs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any], bool]:
    """Adds the group dim where x has none."""
    inputs = {n: v for n, v in inputs.items() if v is not None}
    if len(x.shape) != 2:
        return params, x, inputs, False

    def lift(a: Any) -> Any:
        if isinstance(a, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((1, *a.shape), a.dtype)
        return a[None]

    return params, lift(x), {n: lift(v) for n, v in inputs.items()}, True


def _even(x: Any, inputs: dict[str, Any], parts: int) -> tuple[Any, dict[str, Any]]:
    """Repeats the last group until the groups have that many equal parts.

    A copy of real tokens keeps any router finite, and what its outputs say is cut off again, so
    that no gradient comes from it either.
    """
    missing = -x.shape[0] % parts
    if not missing:
        return x, inputs

    def pad(a: Any) -> Any:
        if isinstance(a, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((a.shape[0] + missing, *a.shape[1:]), a.dtype)
        return jnp.concatenate([a, jnp.repeat(a[-1:], missing, axis=0)])

    return pad(x), {n: pad(v) for n, v in inputs.items()}


def _signature(params: Any, x: Any, key: Any, inputs: dict[str, Any], schedule: Any) -> Any:
    arrays = {"x": x, **inputs}
    for owner, named in params.items():
        arrays.update({f"{owner}/{n}": a for n, a in named.items()})
    shapes = tuple((n, tuple(a.shape), str(a.dtype)) for n, a in sorted(arrays.items()))
    return shapes, key is not None, schedule, jax.default_backend()


def _pick(slot: Slot, params: Any, x: Any, key: Any, inputs: dict[str, Any]) -> Any:
    if slot.owner != "layer":
        return constant(slot.name, params[slot.owner][slot.name])
    return {"tokens": x, "key": key}.get(slot.role, inputs.get(slot.name))


def _alias(dim: str) -> str:
    return next((a for a, d in ALIASES.items() if d == dim), dim)
