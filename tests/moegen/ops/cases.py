"""One case per op: a worked example, an operand its type rule refuses, and what is expected.

A case is a line of IR text with the inputs it reads. Numbers are worked out by hand or with
Python's math module, never with the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moegen.ir.parse import parse
from moegen.ir.program import Program
from moegen.ops import call  # noqa: F401 - importing the package fills the registry

NUMPY = {"f32": np.float32, "i32": np.int32, "bool": np.bool_}


@dataclass(frozen=True)
class Case:
    """One op.

    Attributes:
      op: its name.
      line: its operands and attributes, as in IR text.
      dims: sizes of the dims.
      inputs: name to (type, value).
      out: types of the results.
      want: the worked example's results, or a function of the inputs that gives them.
      refused: operands and attributes that its type rule refuses...
      match: ...and what the error says.
      bad: further inputs of the refused line: name to type.
      setup: ops before it.
      tail: ops after it, which turn its result into one that can be returned.
      returns: what is returned, if not the results of the op.
      derivative: whether it has a derivative rule.
      draws: random float inputs are drawn from this range.
      mesh: sizes of mesh axes, if the op moves values.
    """

    op: str
    line: str
    dims: Mapping[str, int]
    inputs: Mapping[str, tuple[str, Any]]
    out: Sequence[str]
    want: Any
    refused: str
    match: str
    bad: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()
    tail: Sequence[str] = ()
    returns: Sequence[str] = ()
    derivative: bool = True
    draws: tuple[float, float] = (0.3, 1.7)
    mesh: Mapping[str, int] = field(default_factory=dict)

    def text(self, line: str | None = None, bad: bool = False) -> str:
        """The program as text; with another line in place of the op's."""
        types = {n: t for n, (t, _) in self.inputs.items()} | (dict(self.bad) if bad else {})
        inputs = ", ".join(f"%{n}: {t}" for n, t in types.items())
        dims = ", ".join(f"{n}={s}" for n, s in self.dims.items())
        results = ", ".join(f"%r{i}: {t}" for i, t in enumerate(self.out))
        body = [
            *self.setup,
            f"{results} = {self.op}({self.line if line is None else line})",
            *self.tail,
        ]
        returned = self.returns or [f"r{i}" for i in range(len(self.out))]
        ends = "return " + ", ".join(f"out{i}=%{r}" for i, r in enumerate(returned))
        mesh = ", ".join(f"{n}={s}" for n, s in self.mesh.items())
        head = f"moe @case dims({dims}){mesh and f' mesh({mesh})'} ({inputs}) {{"
        return "\n".join([head, *body, ends, "}"])

    def program(self) -> Program:
        """The worked example as a program."""
        return parse(self.text(), f"{self.op}.moe")

    def arrays(self) -> list[Any]:
        """The worked example's inputs."""
        return [_array(t, v) for t, v in self.inputs.values()]

    def random_arrays(self, seed: int) -> list[Any]:
        """Random floats in place of the example's; integers and keys as they are."""
        rng = np.random.default_rng(seed)

        def draw(type_: str, value: Any) -> Any:
            array = _array(type_, value)
            if not type_.startswith("f32"):
                return array
            return jnp.asarray(rng.uniform(*self.draws, np.shape(array)), jnp.float32)

        return [draw(t, v) for t, v in self.inputs.values()]

    def wanted(self) -> tuple[Any, ...]:
        """The worked example's results."""
        return self.want(*self.arrays()) if callable(self.want) else tuple(self.want)


def _array(type_: str, value: Any) -> Any:
    return value if type_ == "key" else jnp.asarray(np.asarray(value, NUMPY[type_.split("[")[0]]))


def _unary(op: str, fn: Callable[[float], float], xs: Sequence[float], **more: Any) -> Case:
    ints = op in ("neg", "square", "abs", "stop_gradient")
    return Case(
        op, "%x", {"S": len(xs)}, {"x": ("f32[S]", xs)}, ["f32[S]"], [[fn(x) for x in xs]],
        refused="%k" if ints else "%i", match="must be a tensor, not key" if ints else "real",
        bad={"k": "key", "i": "i32[S]"}, **more,
    )  # fmt: skip


def _gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _slope(fn: Callable[[float], float]) -> Callable[[float], float]:
    """A central difference, good to 1e-9."""
    return lambda x: (fn(x + 1e-5) - fn(x - 1e-5)) / 2e-5


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


_SIGNED, _POSITIVE = [-1.5, -0.25, 0.75, 2.0], [0.25, 1.0, 4.0]
UNARY = [
    _unary("neg", lambda x: -x, _SIGNED),
    _unary("exp", math.exp, _SIGNED),
    _unary("log", math.log, _POSITIVE),
    _unary("tanh", math.tanh, _SIGNED),
    _unary("erf", math.erf, _SIGNED),
    _unary("sqrt", math.sqrt, _POSITIVE),
    _unary("rsqrt", lambda x: 1 / math.sqrt(x), _POSITIVE),
    _unary("square", lambda x: x * x, _SIGNED),
    _unary("abs", abs, _SIGNED),
    _unary("relu", lambda x: max(x, 0.0), _SIGNED),
    _unary("gelu", _gelu, _SIGNED),
    _unary("silu", lambda x: x * _sigmoid(x), _SIGNED),
    _unary("sigmoid", _sigmoid, _SIGNED),
    _unary("softplus", lambda x: math.log(1 + math.exp(x)), _SIGNED),
    _unary("normal_cdf", _cdf, _SIGNED),
    _unary("stop_gradient", lambda x: x, _SIGNED),
    _unary("gelu_grad", _slope(_gelu), _SIGNED, derivative=False),
    _unary("silu_grad", _slope(lambda x: x * _sigmoid(x)), _SIGNED, derivative=False),
    _unary("sigmoid_grad", _slope(_sigmoid), _SIGNED, derivative=False),
    _unary("normal_pdf", _slope(_cdf), _SIGNED, derivative=False),
]


def _binary(op: str, want: Any, out: str = "f32[S, E]") -> Case:
    """x[S, E] against y[E, S]: operands meet by name, not by position."""
    return Case(
        op, "%x, %y", {"S": 2, "E": 3},
        {"x": ("f32[S, E]", [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
         "y": ("f32[E, S]", [[2.0, 0.5], [2.0, 8.0], [1.0, 6.0]])},
        [out], [want],
        refused="%x, %i", match="dtypes do not match", bad={"i": "i32[S]"},
    )  # fmt: skip


_TRUTH = {"S": 2, "E": 2}
_A, _B = [[True, True], [False, False]], [[True, False], [True, False]]


def _logical(op: str, operands: str, want: Any) -> Case:
    return Case(
        op, operands, _TRUTH, {"a": ("bool[S, E]", _A), "b": ("bool[S, E]", _B)},
        ["bool[S, E]"], [want],
        refused=operands.replace("%a", "%f"), match="bool", bad={"f": "f32[S, E]"},
    )  # fmt: skip


BINARY = [
    _binary("add", [[3.0, 4.0, 4.0], [4.5, 13.0, 12.0]]),
    _binary("sub", [[-1.0, 0.0, 2.0], [3.5, -3.0, 0.0]]),
    _binary("mul", [[2.0, 4.0, 3.0], [2.0, 40.0, 36.0]]),
    _binary("div", [[0.5, 1.0, 3.0], [8.0, 0.625, 1.0]]),
    _binary("maximum", [[2.0, 2.0, 3.0], [4.0, 8.0, 6.0]]),
    _binary("minimum", [[1.0, 2.0, 1.0], [0.5, 5.0, 6.0]]),
    _binary("eq", [[False, True, False], [False, False, True]], "bool[S, E]"),
    _binary("ne", [[True, False, True], [True, True, False]], "bool[S, E]"),
    _binary("lt", [[True, False, False], [False, True, False]], "bool[S, E]"),
    _binary("le", [[True, True, False], [False, True, True]], "bool[S, E]"),
    _binary("gt", [[False, False, True], [True, False, False]], "bool[S, E]"),
    _binary("ge", [[False, True, True], [True, False, True]], "bool[S, E]"),
    Case(
        "mod", "%i, 3", {"S": 4}, {"i": ("i32[S]", [0, 4, 5, -1])}, ["i32[S]"], [[0, 1, 2, 2]],
        refused="%i, 0.5", match="does not fit i32\\[S\\]",
    ),
    _logical("logical_not", "%a", [[False, False], [True, True]]),
    _logical("logical_and", "%a, %b", [[True, False], [False, False]]),
    _logical("logical_or", "%a, %b", [[True, True], [True, False]]),
    Case(
        "select", "%c, %x, 0.5", {"S": 2, "E": 2},
        {"c": ("bool[S]", [True, False]), "x": ("f32[S, E]", [[1.0, 2.0], [3.0, 4.0]])},
        ["f32[S, E]"], [[[1.0, 2.0], [0.5, 0.5]]],
        refused="%x, %x, 0.5", match="the condition must be bool",
    ),
    Case(
        "cast", '%x, dtype="i32"', {"S": 3}, {"x": ("f32[S]", [1.9, -1.9, 0.0])},
        ["i32[S]"], [[1, -1, 0]],
        refused='%x, dtype="f33"', match='no dtype "f33"',
    ),
]  # fmt: skip

_M = ("f32[S, E]", [[1.0, 3.0, 2.0], [5.0, 4.0, 0.0]])
_ME = {"S": 2, "E": 3}


def _along(op: str, out: str, want: Any, over: str = '"E"', **more: Any) -> Case:
    return Case(
        op, f"%x, over={over}", _ME, {"x": _M}, [out], [want],
        refused='%x, over="F"', match='no dim "F" in f32\\[S, E\\]', **more,
    )  # fmt: skip


def _exp_share(row: Sequence[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


REDUCE = [
    _along("sum", "f32[E]", [6.0, 7.0, 2.0], '"S"'),
    _along("mean", "f32[]", 2.5, '("S", "E")'),
    _along("max", "f32[S]", [3.0, 5.0]),
    _along("min", "f32[S]", [1.0, 0.0]),
    _along("argmax", "i32[S]", [1, 0]),
    _along("softmax", "f32[S, E]", [_exp_share(row) for row in _M[1]]),
    _along("logsumexp", "f32[S]", [math.log(sum(math.exp(v) for v in row)) for row in _M[1]]),
    _along("cumsum", "f32[S, E]", [[1.0, 4.0, 6.0], [5.0, 9.0, 9.0]]),
]

SHAPE = [
    Case(
        "dot", '%a, %b, over="D"', {"S": 2, "D": 2, "E": 3},
        {"a": ("f32[S, D]", [[1.0, 2.0], [3.0, 4.0]]),
         "b": ("f32[E, D]", [[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])},
        ["f32[S, E]"], [[[1.0, 2.0, -1.0], [3.0, 4.0, -1.0]]],
        refused='%a, %h, over="D"', match="one real dtype, got f32 and bf16",
        bad={"h": "bf16[E, D]"},
    ),
    Case(
        "full", '2.5, dims=("S", "E"), dtype="f32"', _ME, {"x": _M}, ["f32[S, E]"],
        [np.full((2, 3), 2.5)], refused='%x, dims=("S",), dtype="f32"', match="takes a number",
    ),
    Case(
        "iota", 'dim="E"', _ME, {"x": _M}, ["i32[E]"], [[0, 1, 2]],
        refused='dim="F"', match='no dim "F"',
    ),
    Case(
        "broadcast", '%x, dims=("E", "S", "K")', {**_ME, "K": 2},
        {"x": ("f32[S, E]", _M[1])}, ["f32[E, S, K]"],
        [[[[1.0] * 2, [5.0] * 2], [[3.0] * 2, [4.0] * 2], [[2.0] * 2, [0.0] * 2]]],
        refused='%x, dims=("S", "K")', match="sum over them first|are not in",
    ),
    Case(
        "concat", '%x, %z, dims=("E", "K"), into="A"', {"S": 2, "E": 3, "K": 1, "A": 4},
        {"x": _M, "z": ("f32[S, K]", [[7.0], [8.0]])}, ["f32[S, A]"],
        [[[1.0, 3.0, 2.0, 7.0], [5.0, 4.0, 0.0, 8.0]]],
        refused='%x, %x, dims=("E", "S"), into="A"', match="differ in dims",
    ),
    Case(
        "barrier", "%x, %i", {**_ME, "G": 2},
        {"x": _M, "i": ("i32[G]", [2, -1])}, ["f32[S, E]", "i32[G]"], [_M[1], [2, -1]],
        refused="%x, %k", bad={"k": "key"}, match="must be a tensor, not key",
        derivative=False,
    ),
    Case(
        "slice", '%x, over="E", start=1, into="K"', {**_ME, "K": 2}, {"x": _M}, ["f32[S, K]"],
        [[[3.0, 2.0], [4.0, 0.0]]],
        refused='%x, over="E", start=2, into="K"', match="K=2 from 2 reaches past E=3",
        derivative=False,
    ),
    Case(
        "merge", '%x, dims=("S", "E"), into="K"', {**_ME, "K": 6}, {"x": _M}, ["f32[K]"],
        [[1.0, 3.0, 2.0, 5.0, 4.0, 0.0]],
        refused='%x, dims=("E", "S"), into="K"', match="do not follow each other",
    ),
    Case(
        "split", '%x, dim="K", into=("S", "E")', {**_ME, "K": 6},
        {"x": ("f32[K]", [1.0, 3.0, 2.0, 5.0, 4.0, 0.0])}, ["f32[S, E]"], [_M[1]],
        refused='%x, dim="K", into=("S", "K")', match="K=6 is not S=2 \\* K=6",
    ),
    Case(
        "one_hot", '%i, dim="E", dtype="f32"', _ME, {"i": ("i32[S]", [2, -1])}, ["f32[S, E]"],
        [[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]],
        refused='%f, dim="E", dtype="f32"', match="needs i32 indices", bad={"f": "f32[S]"},
    ),
    Case(
        "top_k", '%x, over="E", dim="K", k=2', {**_ME, "K": 2},
        {"x": ("f32[S, E]", [[1.0, 3.0, 2.0], [5.0, 4.0, 4.0]])}, ["f32[S, K]", "i32[S, K]"],
        [[[3.0, 2.0], [5.0, 4.0]], [[1, 2], [0, 1]]],
        refused='%x, over="E", dim="K", k=4', match="k=4 is more than E=3",
    ),
    Case(
        "take", '%x, %i, over="E"', {**_ME, "K": 2},
        {"x": _M, "i": ("i32[S, K]", [[1, 1], [2, 7]])}, ["f32[S, K]"],
        [[[3.0, 3.0], [0.0, 0.0]]],
        refused='%x, %x, over="E"', match="needs i32 indices",
    ),
]  # fmt: skip


def _drawn(sample: Callable[..., Any]) -> Callable[..., Any]:
    """Each group draws from the layer's key, the draw's number, and its own index."""

    def want(key: Any) -> tuple[Any, ...]:
        keys = [jax.random.fold_in(jax.random.fold_in(key, 3), g) for g in range(2)]
        return (np.stack([sample(k, (3,), jnp.float32) for k in keys]),)

    return want


RANDOM = [
    Case(
        name, '%key, dims=("G", "S"), dtype="f32", stream=3', {"G": 2, "S": 3},
        {"key": ("key", jax.random.key(5))}, ["f32[G, S]"], _drawn(sample),
        refused='%x, dims=("G", "S"), dtype="f32", stream=0', match="takes a key",
        bad={"x": "f32[G, S]"},
    )
    for name, sample in (("normal", jax.random.normal), ("uniform", jax.random.uniform))
]  # fmt: skip

# One group, three tokens with two choices each, two experts with two slots each.
# Queues, first choices first: expert 0 gets tokens 0, 1 and then 2; expert 1 gets 2, then 0, 1.
_R = {"G": 1, "S": 3, "K": 2, "E": 2, "C": 2, "D": 2}
_EXPERT = ("i32[G, S, K]", [[[0, 1], [0, 1], [1, 0]]])
_WEIGHT = ("f32[G, S, K]", [[[0.5, 0.25], [0.75, 1.0], [2.0, 4.0]]])
_X = ("f32[G, S, D]", [[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]])
_Y = ("f32[G, E, C, D]", [[[[1.0, 1.0], [2.0, 2.0]], [[3.0, 3.0], [4.0, 4.0]]]])
_ROUTE = "route[G, S, E, C] of f32[G, S, K]"
_ASSIGN = f"%route: {_ROUTE} = assign(%weight, %expert, capacity=2)"
_WE = {"weight": _WEIGHT, "expert": _EXPERT}
_ROUTE_ITEMS = "route[G, S, E, C] of f32[G, E, C]"
_ITEMS = {
    "weight": ("f32[G, E, C]", [[[0.5, 0.25], [0.75, 1.0]]]),
    "token": ("i32[G, E, C]", [[[2, 0], [0, 1]]]),
    "x": _X,
}
_MIX = ("f32[G, S, E, C]", [[[[0.0, 0.0], [0.0, 1.0]], [[0.75, 0.0], [0.0, 0.0]],
                             [[0.0, 1.0], [0.0, 0.0]]]])  # fmt: skip
_SLOT = [[[0, 3], [1, 4], [2, 4]]]
_SLOTS = ("i32[G, S, K]", _SLOT)
_SOURCE = [[[0, 2], [4, 1]]]  # slots [G, E, C]: choices (0,0), (1,0) and (2,0), (0,1)

ROUTING = [
    Case(
        "assign", "%weight, %expert, capacity=2", _R, _WE, [_ROUTE],
        [[[[True, True], [True, False], [True, False]]]],
        refused="%weight, %expert, capacity=0", match="capacity 0 is less than 1",
        tail=("%k: bool[G, S, K] = kept(%r0)",), returns=["k"],
    ),
    Case(  # expert 0 takes tokens 2 and 0, expert 1 takes tokens 0 and 1
        "assign_items", "%weight, %token", _R, _ITEMS, [_ROUTE_ITEMS],
        [[[[[3.0, 30.0], [1.0, 10.0]], [[1.0, 10.0], [2.0, 20.0]]]]],
        refused="%token, %weight", match="weight must be real and token i32",
        tail=("%xe: f32[G, E, C, D] = dispatch(%r0, %x)",), returns=["xe"],
    ),
    Case(
        "dense_route", "%mix", _R, {"mix": _MIX, "x": _X},
        ["route[G, S, E, C] of f32[G, S, E, C]"],
        [[[[[1.5, 15.0], [3.0, 30.0]], [[0.0, 0.0], [1.0, 10.0]]]]],
        refused="%x", match="weight must be real \\[G, S, E, C\\]",
        tail=("%xe: f32[G, E, C, D] = dispatch(%r0, %x, weighted=True)",), returns=["xe"],
    ),
    Case(
        "item_slots", "%token", _R, {"token": _ITEMS["token"]}, ["i32[G, S, E]"],
        [[[[1, 2], [4, 3], [0, 4]]]],
        refused="%x", match="needs i32\\[G, E, C\\]", bad={"x": "f32[G, E, C]"},
    ),
    Case(
        "take_items", '%x, %token, dims=("E", "G", "C")', _R, {"x": _X, "token": _ITEMS["token"]},
        ["f32[E, G, C, D]"],
        [[[[[3.0, 30.0], [1.0, 10.0]]], [[[1.0, 10.0], [2.0, 20.0]]]]],
        refused='%token, %token, dims=("E", "G", "C")', match="x must be \\[G, S",
        derivative=False,
    ),
    Case(
        "kept", "%route", _R, _WE, ["bool[G, S, K]"],
        [[[[True, True], [True, False], [True, False]]]],
        refused="%weight", match="must be a route", setup=[_ASSIGN],
    ),
    Case(
        "dispatch", "%route, %x", _R, {**_WE, "x": _X}, ["f32[G, E, C, D]"],
        [[[[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [1.0, 10.0]]]]],
        refused="%route, %weight_t", match="x must be real \\[G, S", setup=[_ASSIGN],
        bad={"weight_t": "f32[S, G, D]"},
    ),
    Case(
        "combine", "%route, %y, weighted=True", _R, {**_WE, "y": _Y}, ["f32[G, S, D]"],
        [[[[0.5 * 1 + 0.25 * 4] * 2, [0.75 * 2] * 2, [2.0 * 3] * 2]]],
        refused="%route, %x, weighted=True", match="y must be real \\[G, E, C",
        bad={"x": "f32[G, S, D]"}, setup=[_ASSIGN],
    ),
    Case(
        "affinity", "%route, %y, %x", _R, {**_WE, "y": _Y, "x": _X}, ["f32[G, S, K]"],
        [[[[1 * 11.0, 4 * 11.0], [2 * 22.0, 0.0], [3 * 33.0, 0.0]]]],
        refused="%route, %x, %y", match="rows do not match", setup=[_ASSIGN],
        derivative=False,
    ),
    Case(
        "positions", "%expert, %first", _R,
        {"expert": _EXPERT, "first": ("f32[G, S]", [[0.0, 2.0, 1.0]])}, ["i32[G, S, K]"],
        [[[[1, 2], [0, 1], [0, 2]]]],
        refused="%first", match="needs i32\\[G, S, K\\]",
    ),
    Case(  # two groups; expert 0 takes 2 of its 3 first choices, expert 1 its own and one second
        "served", "%expert, %first, capacity=1", {"G": 2, "S": 2, "K": 2, "E": 2},
        {"expert": ("i32[G, S, K]", [[[0, 1], [0, 1]], [[0, -1], [1, 0]]]),
         "first": ("f32[G, S]", [[1.0, 2.0], [3.0, 0.0]])}, ["bool[G, S, K]"],
        [[[[False, False], [True, True]], [[True, False], [True, False]]]],
        refused="%first, capacity=1", match="expert must be i32\\[G, S, K\\]",
    ),
    Case(
        "slot_numbers", "%expert, %position", _R,
        {"expert": _EXPERT, "position": ("i32[G, S, K]", [[[0, 1], [1, 2], [0, 2]]])},
        ["i32[G, S, K]"], [_SLOT],
        refused="%key, %position", match="must be a tensor", bad={"key": "key"},
    ),
    Case(  # a block of 2: expert 0 has 2 rows, expert 1 has 2 rows; room for 4 + 2 * 1
        "row_numbers", "%expert, %position, block=2", {**_R, "N": 6},
        {"expert": _EXPERT, "position": ("i32[G, S, K]", [[[0, 1], [1, 2], [0, 2]]])},
        ["i32[G, S, K]", "i32[E]"], [[[[0, 3], [1, 6], [2, 6]]], [2, 2]],
        refused="%key, %position, block=2", match="must be a tensor", bad={"key": "key"},
    ),
    Case(
        "invert_slots", '%slot, dims=("E", "G", "C")', _R, {"slot": _SLOTS}, ["i32[E, G, C]"],
        [[[[0, 2]], [[4, 1]]]],
        refused='%slot, dims=("E", "Q")', match='no dim "Q"',
    ),
    Case(
        "take_tokens", "%x, %source, %weight", _R,
        {"x": _X, "source": ("i32[E, G, C]", [[[0, 2]], [[4, 6]]]), "weight": _WEIGHT},
        ["f32[E, G, C, D]"], [[[[[0.5, 5.0], [1.5, 15.0]]], [[[6.0, 60.0], [0.0, 0.0]]]]],
        refused="%source, %x", match="x must be \\[G, S", derivative=False,
    ),
    Case(
        "take_slots", "%y, %slot, %weight", _R,
        {"y": ("f32[E, G, C, D]", [[[[1.0, 1.0], [2.0, 2.0]]], [[[3.0, 3.0], [4.0, 4.0]]]]),
         "slot": _SLOTS, "weight": _WEIGHT},
        ["f32[G, S, D]"], [[[[1.5, 1.5], [1.5, 1.5], [6.0, 6.0]]]],
        refused="%slot, %slot", match="does not start with slots", derivative=False,
    ),
    Case(
        "match_slots", '%y, %slot, %x, dtype="f32"', _R,
        {"y": _Y, "slot": _SLOTS, "x": _X}, ["f32[G, S, K]"],
        [[[[11.0, 44.0], [44.0, 0.0], [99.0, 0.0]]]],
        refused='%y, %key, %x, dtype="f32"', match="must be a tensor", bad={"key": "key"},
        derivative=False,
    ),
    Case(
        "slot_mask", '%slot, %weight, dtype="f32"', _R, {"slot": _SLOTS, "weight": _WEIGHT},
        ["f32[G, S, E, C]"],
        [[[[[0.5, 0.0], [0.0, 0.25]], [[0.0, 0.75], [0.0, 0.0]], [[0.0, 0.0], [2.0, 0.0]]]]],
        refused='%weight, %weight, dtype="f32"', match="slot must be i32",
        derivative=False,
    ),
]  # fmt: skip

# Five rows: two of expert 0, none of expert 1, two of expert 2, one of nobody.
_G = {"N": 5, "E": 3, "D": 2, "F": 2}
_SIZES = ("i32[E]", [2, 0, 2])
_ROWS = ("f32[N, D]", [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [9.0, 9.0]])
_W = (
    "f32[E, D, F]",
    [[[1.0, 2.0], [3.0, 4.0]], [[7.0, 7.0], [7.0, 7.0]], [[5.0, 6.0], [7.0, 8.0]]],
)

GROUPED = [
    Case(
        "grouped_dot", '%rows, %w, %sizes, over="D", block=1', _G,
        {"rows": _ROWS, "w": _W, "sizes": _SIZES}, ["f32[N, F]"],
        [[[1.0, 2.0], [3.0, 4.0], [12.0, 14.0], [10.0, 12.0], [0.0, 0.0]]],
        refused='%w, %rows, %sizes, over="D", block=1', match="needs rows \\[N", derivative=False,
    ),
    Case(  # the choices of three tokens, two each, sorted: those of numbers 4, 0, 5, 1 have rows
        "gathered_dot", '%x, %source, %w, %sizes, over="D", block=1',
        {"G": 1, "S": 3, "K": 2, **_G},
        {"x": ("f32[G, S, D]", [[[0.0, 1.0], [9.0, 9.0], [1.0, 0.0]]]),
         "source": ("i32[N]", [4, 0, 5, 1, 6]), "w": _W, "sizes": _SIZES}, ["f32[N, F]"],
        [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [0.0, 0.0]]],
        refused='%x, %slots, %w, %sizes, over="D", block=1', match="source must be i32\\[N\\]",
        bad={"slots": "i32[G, E, S]"}, derivative=False,
    ),
    Case(
        "grouped_outer", '%rows, %b, %sizes, block=1, out=("E", "D", "F")', _G,
        {"rows": _ROWS, "b": ("f32[N, F]", [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0],
                                            [9.0, 9.0]]), "sizes": _SIZES},
        ["f32[E, D, F]"],
        [[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]], [[19.0, 22.0], [5.0, 6.0]]]],
        refused='%rows, %sizes, %sizes, block=1, out=("E", "D", "F")',
        match="needs two row tensors", derivative=False,
    ),
    Case(
        "grouped_sum", "%rows, %sizes, block=1", _G, {"rows": _ROWS, "sizes": _SIZES},
        ["f32[E, D]"], [[[1.0, 1.0], [0.0, 0.0], [3.0, 1.0]]],
        refused="%sizes, %sizes, block=1", match="needs rows \\[N", derivative=False,
    ),
    Case(
        "per_row", "%b, %sizes", _G,
        {"b": ("f32[D, E]", [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "sizes": _SIZES},
        ["f32[N, D]"], [[[1.0, 4.0], [1.0, 4.0], [3.0, 6.0], [3.0, 6.0], [0.0, 0.0]]],
        refused="%rows, %sizes", match="needs \\[E", bad={"rows": "f32[N, D]"},
        derivative=False,
    ),
]  # fmt: skip


def scaled(x: Any, w: Any, *, times: float = 1.0) -> Any:
    """What the `call` cases call: [S, D] and [D] without the group dim."""
    return jnp.tanh(x * w * times)


_FN = f'fn="{__name__}:scaled", batch=("G",)'
_OUT = f'{_FN}, dims=("G", "S", "D")'
_CALLED = {
    "x": ("f32[S, G, D]", [[[0.5, 1.0]], [[2.0, -1.0]]]),
    "w": ("f32[D]", [1.0, 2.0]),
}
_PRODUCT = [[0.5, 2.0], [2.0, -2.0]]
CALL = [
    Case(
        "call", f'%x, %w, {_FN}, dims=("G", "S", "D"), dtype="f32", settings=(("times", 0.5),)',
        {"G": 1, "S": 2, "D": 2}, _CALLED, ["f32[G, S, D]"],
        [[[[math.tanh(0.5 * v) for v in row] for row in _PRODUCT]]],
        refused=f'%x, %w, {_FN}, dims=("G", "S"), dtype="f32"', match="declared is f32",
    ),
    Case(
        "call_vjp", f"%x, %w, %ct, {_OUT}, wrt=1", {"G": 1, "S": 2, "D": 2},
        {**_CALLED, "ct": ("f32[S, G, D]", np.ones((2, 1, 2)))}, ["f32[D]"],
        [[0.5 * (1 - math.tanh(0.5) ** 2) + 2.0 * (1 - math.tanh(2.0) ** 2),
          1.0 * (1 - math.tanh(2.0) ** 2) - 1.0 * (1 - math.tanh(-2.0) ** 2)]],
        refused=f"%x, %key, %ct, {_OUT}, wrt=1", match="must be a tensor", bad={"key": "key"},
        derivative=False,
    ),
]  # fmt: skip

_M = {"G": 2, "E": 2}
_ONE = {"m": 1}
_SPLIT = {"x": ("f32[G@m, E]", [[1.0, 2.0], [3.0, 4.0]])}
_COUNTED = {
    "G": 1, "S": 3, "K": 1, "E": 2, "C": 3, "Parts": 1, "Sent": 3, "N": 6, "GroupParts": 1
}  # fmt: skip
_RING = {"G": 2, "E": 2, "G1of1": 2, "E1of1": 2}
_WIDE = {"E": 1, "G": 1, "C": 2, "D": 128, "F": 128}
_AROUND = 'axes=("m",), devices=1, outer=1'
_OWED = ['%p: f32[E] partial@m = sum(%x, over="G")']
MESH = [
    Case(
        "all_to_all", '%x, axes=("m",), join="G", split="E"', _M, _SPLIT, ["f32[G, E@m]"],
        [[[1.0, 2.0], [3.0, 4.0]]], mesh=_ONE,
        refused='%x, axes=("m",), join="E", split="G"', match="E does not end with m",
    ),
    Case(
        "all_gather", '%x, axes=("m",), over="G"', _M, _SPLIT, ["f32[G, E]"],
        [[[1.0, 2.0], [3.0, 4.0]]], mesh=_ONE,
        refused='%x, axes=("n",), over="G"', match="G@m does not end with n",
    ),
    Case(
        "take_part", '%x, axes=("m",), over="E"', _M, {"x": ("f32[G, E]", [[1.0, 2.0]] * 2)},
        ["f32[G, E@m]"], [[[1.0, 2.0]] * 2], mesh=_ONE,
        refused='%s, axes=("m",), over="E"', match="the mesh axis m appears twice",
        bad={"s": "f32[G@m, E]"},
    ),
    Case(
        "psum", '%p, axes=("m",)', _M, _SPLIT, ["f32[E]"], [[4.0, 6.0]], mesh=_ONE, setup=_OWED,
        refused='%x, axes=("m",)', match="G@m owes no sum over m",
    ),
    Case(
        "reduce_scatter", '%p, axes=("m",), over="E"', _M, _SPLIT, ["f32[E@m]"], [[4.0, 6.0]],
        mesh=_ONE, setup=_OWED,
        refused='%x, axes=("m",), over="E"', match="owes no sum over m",
    ),
    Case(  # expert 0 gets tokens 1 and 2, expert 1 token 0
        "pair_numbers", "%expert, %position, devices=1, parts=1",
        {"G": 1, "S": 3, "K": 1, "E": 2, "C": 2, "Parts": 1, "Sent": 3},
        {"expert": ("i32[G, S, K]", [[[1], [0], [0]]]),
         "position": ("i32[G, S, K]", [[[0], [0], [1]]])},
        ["i32[G, S, K]", "i32[Parts, E]"], [[[[2], [0], [1]]], [[2, 1]]],
        refused="%expert, %position, devices=2, parts=1", match="2 devices cannot share out",
    ),
    Case(
        "swap_parts", '%x, axes=("m",), devices=1', {"Parts": 1, "E": 2, "Sent": 3, "D": 1},
        {"x": ("f32[Sent@m, D]", [[1.0], [2.0], [3.0]])}, ["f32[Sent@m, D]"],
        [[[1.0], [2.0], [3.0]]], mesh=_ONE,
        refused='%x, axes=("n",), devices=1', match="lists over m are not exchanged over",
    ),
    Case(  # one row of expert 0, two of expert 1, in blocks of 2
        "regroup", '%counts, axes=("m",), devices=1, block=2',
        {"Parts": 1, "E": 2, "Sent": 4, "N": 6, "GroupParts": 1},
        {"counts": ("i32[Parts@m, E]", [[1, 2]])},
        ["i32[N@m]", "i32[Sent@m]", "i32[GroupParts, E@m]"],
        [[0, 4, 1, 2, 4, 4], [0, 2, 3, 6], [[2, 2]]], mesh=_ONE,
        refused='%counts, axes=("m",), devices=1, block=0', match="block=0",
    ),
    Case(
        "sent_sizes", '%counts, axes=("m",), devices=1, block=2', _COUNTED,
        {"counts": ("i32[Parts, E]", [[1, 2]])}, ["i32[GroupParts, E@m]"], [[[2, 2]]], mesh=_ONE,
        refused='%counts, axes=("m",), devices=1, block=0', match="block=0",
    ),
    Case(  # one row of expert 0, two of expert 1, in blocks of 2
        "send_rows", '%x, %counts, axes=("m",), devices=1, block=2', _COUNTED,
        {"x": ("f32[Sent@m]", [1.0, 2.0, 3.0]), "counts": ("i32[Parts, E]", [[1, 2]])},
        ["f32[N@m]"], [[1.0, 0.0, 2.0, 3.0, 0.0, 0.0]], mesh=_ONE, derivative=False,
        refused='%x, %counts, axes=("n",), devices=1, block=2',
        match="rows over m are not those of counts over n",
    ),
    Case(
        "return_rows", '%x, %counts, axes=("m",), devices=1, block=2', _COUNTED,
        {"x": ("f32[N@m]", [1.0, 9.0, 2.0, 3.0, 9.0, 9.0]), "counts": ("i32[Parts, E]", [[1, 2]])},
        ["f32[Sent@m]"], [[1.0, 2.0, 3.0]], mesh=_ONE, derivative=False,
        refused='%counts, %counts, axes=("m",), devices=1, block=2',
        match=r"needs rows \[N, ...\], got i32\[Parts, E\]",
    ),
    Case(
        "ring_part", f'%x, {_AROUND}, over="E", along="G", by=0', _RING, _SPLIT,
        ["f32[G@m, E1of1]"], [[[1.0, 2.0], [3.0, 4.0]]], mesh=_ONE, derivative=False,
        refused=f'%x, {_AROUND}, over="G", along="E", by=0', match="E does not end with m",
    ),
    Case(
        "ring_permute", f'%x, {_AROUND}, join="G", split="E", by=1', _RING,
        {"x": ("f32[G@m, E1of1]", [[1.0, 2.0], [3.0, 4.0]])},
        ["f32[G1of1, E@m]"], [[[1.0, 2.0], [3.0, 4.0]]], mesh=_ONE, derivative=False,
        refused=f'%x, {_AROUND}, join="E", split="G", by=1', match='no dim "E" in',
    ),
    Case(
        "ring_join", f'%x, {_AROUND}, over="E", along="G", by=(0,)', _RING,
        {"x": ("f32[G@m, E1of1]", [[1.0, 2.0], [3.0, 4.0]])},
        ["f32[G@m, E]"], [[[1.0, 2.0], [3.0, 4.0]]], mesh=_ONE, derivative=False,
        refused=f'%x, {_AROUND}, over="E", along="G", by=(0, 1)', match="are not the distances",
    ),
    Case(  # one expert, one group, two slots of width 128
        "exchanged_dot", '%x, %w, axes=("m",), devices=1, over="D"', _WIDE,
        {"x": ("f32[E, G@m, C, D]", np.ones((1, 1, 2, 128)) * [[[[1.0], [2.0]]]]),
         "w": ("f32[E@m, D, F]", np.full((1, 128, 128), 0.5))},
        ["f32[E@m, G, C, F]", "f32[E@m, G, C, D]"],
        [np.ones((1, 1, 2, 128)) * [[[[64.0], [128.0]]]],
         np.ones((1, 1, 2, 128)) * [[[[1.0], [2.0]]]]], mesh=_ONE, derivative=False,
        refused='%x, %w, axes=("m",), devices=2, over="D"', match="devices=2 do not divide",
    ),
    Case(
        "take_rows", "%x, %index", {"Sent": 2, "N": 3, "D": 2},
        {"x": ("f32[Sent, D]", [[1.0, 2.0], [3.0, 4.0]]), "index": ("i32[N]", [1, 2, 0])},
        ["f32[N, D]"], [[[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]],
        refused="%x, %x", match="index must be i32", derivative=False,
    ),
]  # fmt: skip

CASES = {
    c.op: c for c in (*UNARY, *BINARY, *REDUCE, *SHAPE, *RANDOM, *ROUTING, *GROUPED, *CALL, *MESH)
}
