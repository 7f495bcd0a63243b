"""From a plan to a traced layer and its arrays."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moegen as mg
from moegen.dsl.trace import Given, Slot, TracedLayer, trace_layer
from moegen.ir.program import Program
from moegen.ir.rewrite import rename
from moegen.ir.types import Key, Tensor
from tests.moegen.random.instructions import INSTRUCTIONS
from tests.moegen.random.plans import SIZES, Plan, Step
from tests.moegen.random.pool import Entry, Pool
from tests.moegen.random.routes import choose

ROUTER = {
    "x": mg.f32["S D"],
    "w": mg.f32["D E"],
    "b": mg.f32["E"],
    "u": mg.f32["D"],
    "t": mg.f32[""],
    "z": mg.f32["D Z"],
    "ids": mg.i32["S"],
    "mask": mg.bool_["S"],
    "noise": mg.f32["S E"],
}
EXPERT = {
    "x": mg.f32["C D"],
    "w": mg.f32["D F"],
    "v": mg.f32["D F"],
    "o": mg.f32["F D"],
    "b": mg.f32["F"],
    "c": mg.f32["D"],
    "s": mg.f32[""],
}
SPANS = {"ids": (0, 5), "w": (-1.0, 1.0)}
SOFT_CAPACITY = 2


@dataclass(frozen=True)
class Case:
    """A traced layer with one array per argument, and how it is lowered."""

    layer: TracedLayer
    arrays: tuple[Any, ...]
    seed: int = 0
    block: int = 1
    target: str = "h100"
    save: str = "all"

    @property
    def program(self) -> Program:
        return self.layer.program


def make_case(plan: Plan) -> Case:
    """Traces the plan's layer and draws its arrays."""
    layer = trace(_router(plan), _expert(plan), sizes_of(plan), key=plan.key)
    arrays = draw_arrays(layer.program, plan.seed)
    return Case(layer, arrays, plan.seed, plan.block, plan.target, plan.save)


def sizes_of(plan: Plan) -> dict[str, int]:
    """Sizes of the dims of a layer's arguments."""
    slots = {"C": SOFT_CAPACITY} if plan.routing.kind == "soft" else {}
    return SIZES[plan.sizes] | slots


def trace(
    router: mg.Router, expert: mg.Expert, sizes: dict[str, int], *, key: bool = False
) -> TracedLayer:
    """Traces a layer for arguments of these sizes; every argument is given."""
    params: dict[str, dict[str, Any]] = {"router": {}, "expert": {}}
    inputs = {}
    for owner, declared in (("router", router), ("expert", expert)):
        for arg in declared.arguments[1:]:
            if arg.role == "key":
                continue
            lead = ("G",) if arg.role == "input" else ("E",) if owner == "expert" else ()
            struct = _struct((*lead, *arg.spec.dims), arg.spec.dtype, sizes)
            (inputs if arg.role == "input" else params[owner])[arg.name] = struct
    x = _struct(("G", "S", "D"), "f32", sizes)
    given = Given(x, params["router"], params["expert"], inputs, key)
    return _tidy(trace_layer(router, expert, given))


def _struct(dims: tuple[str, ...], dtype: str, sizes: dict[str, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(sizes[d] for d in dims), _dtype(dtype))


def _tidy(layer: TracedLayer) -> TracedLayer:
    """The layer without inputs that nothing reads; values that are no outputs named by their op."""
    reported = {v.name for _, v in layer.program.outputs}
    names = {r.name: op.name for op in layer.program.ops for r in op.results}
    program = rename(layer.program, {n: o for n, o in names.items() if n not in reported})
    read = {*program.users(), *(v.name for v in program.returned)}
    kept = [i for i, v in enumerate(program.inputs) if v.name in read]
    slots: tuple[Slot, ...] = tuple(layer.slots[i] for i in kept)
    return TracedLayer(program.with_(inputs=tuple(program.inputs[i] for i in kept)), slots)


def draw_arrays(program: Program, seed: int) -> tuple[Any, ...]:
    """Arrays for a program's inputs and cotangents.

    Floats are multiples of 1/8 in -1..1, so that sums of a few products are exact in float32, and
    equal values, which are many, are equal in any precision. Cotangents are any floats.
    """
    rng = np.random.default_rng(seed)
    made: list[Any] = []
    for value in program.arguments:
        if isinstance(value.type, Key):
            made.append(jax.random.key(seed))
            continue
        assert isinstance(value.type, Tensor)
        shape = tuple(program.sizes[d] for d in value.type.dims)
        made.append(jnp.asarray(_elements(rng, value.type.dtype, shape), _dtype(value.type.dtype)))
    inputs = len(program.inputs)
    for i in range(inputs, len(made)):
        made[i] = jnp.asarray(rng.normal(size=made[i].shape), jnp.float32)
    return tuple(made)


def _elements(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "i32":
        return rng.integers(0, 6, shape)
    if dtype == "bool":
        return rng.random(shape) < 0.7
    return rng.integers(-8, 9, shape) / 8


def _dtype(name: str) -> Any:
    return {"f32": jnp.float32, "i32": jnp.int32, "bool": jnp.bool_}[name]


# ---- the two functions


def _declare(name: str, specs: dict[str, Any], key: bool, body: Any) -> Any:
    """A function with these arguments, all but the first optional; body gets them as a dict."""

    def run(*args: Any) -> Any:
        return body(dict(zip(parameters, args, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    given = {**specs, **({"key": mg.Key} if key else {})}
    parameters = {
        n: inspect.Parameter(
            n, kind, annotation=spec, default=inspect.Parameter.empty if n == "x" else None
        )
        for n, spec in given.items()
    }
    run.__signature__ = inspect.Signature(list(parameters.values()))
    run.__name__ = name
    return run


def _router(plan: Plan) -> mg.Router:
    specs = dict(ROUTER)
    if plan.routing.kind == "soft":
        specs["mu"] = mg.f32["D E C"]

    def body(given: dict[str, Any]) -> Any:
        pool = _pool(given, sizes_of(plan), ("G",), "S")
        logits = mg.dot(given["x"], given["w"], over="D")
        pool.add(logits, -1.0 * pool.sizes["D"], 1.0 * pool.sizes["D"])
        run_steps(pool, plan.before)
        route = choose(pool, plan.routing)
        run_steps(pool, plan.after)
        outputs = {}
        for name, pick, averaged in plan.outputs:
            outputs[name] = _output(pool, pick, averaged)
        return route, outputs

    return mg.router(_declare("router", specs, plan.key, body))


def _expert(plan: Plan) -> mg.Expert:
    def body(given: dict[str, Any]) -> Any:
        # S is no dim of an expert: rows that have it make no tokens [G, S, ...] when combined.
        sizes = {d: mg.size(d) for d in (*SIZES[plan.sizes], "C") if d not in ("S", "Z")}
        pool = _pool(given, sizes, ("G", "E"), "C")
        if plan.routing.kind == "soft" and "ones" in plan.routing.weight:
            high = 1.5 * mg.size("S")  # rows are sums of tokens by weights that are no shares
            pool.entries[0] = Entry(given["x"], -high, high)
        _begin(pool, given, plan.body)
        run_steps(pool, plan.expert)
        rows = pool.pick(plan.rows, lambda e: e.is_float and e.dims[:3] == ("G", "E", "C"))
        assert rows is not None
        if plan.close and "F" in rows.dims:
            return mg.dot(rows.value, given["o"], over="F") + given["c"]
        return rows.value

    return mg.expert(_declare("expert", EXPERT, plan.key, body))


def _pool(given: dict[str, Any], sizes: dict[str, int], hidden: tuple[str, ...], lead: str) -> Pool:
    pool = Pool(sizes, hidden, lead, given.get("key"))
    for name, value in given.items():
        if name != "key":
            pool.add(value, *SPANS.get(name, (-1.0, 1.0)))
    return pool


def _begin(pool: Pool, given: dict[str, Any], body: str) -> None:
    """The first layer of an expert, so that most of what follows is about rows."""
    high = pool.entries[0].high * pool.sizes["D"]
    if body == "dense":
        pool.add(mg.dot(given["x"], given["w"], over="D") + given["b"], -high - 1, high + 1)
    elif body == "gated":
        gate = mg.silu(mg.dot(given["x"], given["w"], over="D"))
        made = gate * mg.dot(given["x"], given["v"], over="D")
        if high < 6:
            pool.add(made, -high * high, high * high)
        else:
            pool.add(mg.tanh(made), -1.0, 1.0)


def run_steps(pool: Pool, steps: tuple[Step, ...]) -> None:
    for name, a, b in steps:
        INSTRUCTIONS[name](pool, a, b)


def _output(pool: Pool, pick: int, averaged: bool) -> Any:
    """What is reported: a value as it is, or a number per group."""
    entry = pool.pick(pick, lambda e: e.is_float or not averaged)
    own = pool.own(entry)
    return mg.mean(entry.value, over=own) if averaged and own else entry.value
