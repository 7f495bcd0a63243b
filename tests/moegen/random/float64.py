"""The second opinion: a program in plain numpy and float64, routing in loops.

It shares nothing with moegen but the program itself. Choices (comparisons, extremes, `top_k`,
queues by priority) are where precision could matter: they are made on the float32 values of the
run that is checked, and each is held against float64: the values compared are equal in both, or
clearly apart and in the same order in both. A program with another choice is `Unclear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moegen.ir.program import Literal, Op, Program, Value

APART, EQUAL = 1e-4, 1e-12
"""Values differ by more than the first, or are equal to the second, relative to their size."""


class Unclear(Exception):
    """A choice that hangs on rounding."""


class Wrong(AssertionError):
    """A choice that differs from float64's where that is clear."""


@dataclass(frozen=True)
class Named:
    """An array with a name per axis, and the same in float32 as the run under test has it."""

    dims: tuple[str, ...]
    data: np.ndarray
    seen: np.ndarray

    def along(self, dims: tuple[str, ...]) -> Named:
        """Transposed, with axes of length 1 for dims it lacks."""
        order = [self.dims.index(d) for d in dims if d in self.dims]
        index = tuple(slice(None) if d in self.dims else None for d in dims)
        return Named(dims, self.data.transpose(order)[index], self.seen.transpose(order)[index])


@dataclass(frozen=True)
class Path:
    """A route: `weight` as given, and the slot of each choice or the token of each slot.

    kind "tokens": slot[g, s, k] is (expert, place) or None; "items": token[g, e, c];
    "soft": weight [G, S, E, C].
    """

    kind: str
    weight: np.ndarray
    places: Any = None


def must_agree(what: str, a: np.ndarray, b: np.ndarray, a32: np.ndarray, b32: np.ndarray) -> None:
    """Raises unless a and b are ordered alike in float64 and float32, and not by a hair."""
    a, b, a32, b32 = np.broadcast_arrays(a, b, a32, b32)
    with np.errstate(invalid="ignore"):
        gap, size = np.abs(a - b), 1.0 + np.maximum(np.abs(a), np.abs(b))
        apart = (gap > APART * size) | (np.isinf(a) != np.isinf(b))
        tied = ((gap <= EQUAL * size) | (a == b)) & (a32 == b32)
    if not np.all(apart | tied):
        raise Unclear(what)
    if np.any(np.sign(a - b)[apart] != np.sign(a32.astype(np.float64) - b32)[apart]):
        raise Wrong(f"{what}: float32 and float64 clearly disagree")


def evaluate(
    program: Program, arrays: Mapping[str, Any], seen: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Runs a traced program in float64.

    Args:
      program: at the stage `trace`.
      arrays: inputs by name.
      seen: every tensor of the program, as the float32 run has it.

    Returns:
      Every tensor of the program by name.

    Raises:
      Unclear: if a choice hangs on rounding.
      Wrong: if a choice is not float64's.
    """
    run = _Run(dict(program.sizes), dict(seen))
    for value in program.inputs:
        run.give(value, arrays[value.name])
    for op in program.ops:
        run.step(op)
    return {n: v.data for n, v in run.values.items() if isinstance(v, Named)}


class _Run:
    def __init__(self, sizes: dict[str, int], seen: dict[str, np.ndarray]):
        self.sizes, self.seen = sizes, seen
        self.values: dict[str, Any] = {}

    def give(self, value: Value, array: Any) -> None:
        if not hasattr(value.type, "dims") or hasattr(value.type, "weight"):
            self.values[value.name] = array  # a key or a route
            return
        data = np.asarray(array)
        data = data.astype(np.float64) if data.dtype.kind == "f" else data
        seen = np.asarray(self.seen.get(value.name, data))
        assert data.shape == tuple(self.sizes[d] for d in value.type.dims), value
        self.values[value.name] = Named(value.type.dims, data, seen)

    def operand(self, operand: Value | Literal) -> Any:
        if isinstance(operand, Value):
            return self.values[operand.name]
        number = np.asarray(operand.value)
        return Named((), number.astype(np.float64) if number.dtype.kind == "f" else number, number)

    def step(self, op: Op) -> None:
        given = [self.operand(o) for o in op.operands]
        if op.name in ELEMENTWISE:
            made: Any = self.elementwise(op, given)
        else:
            made = getattr(self, f"do_{op.name}")(op, *given)
        for value, array in zip(
            op.results, made if isinstance(made, tuple) else (made,), strict=True
        ):
            self.give(value, array)

    # ---- element by element

    def elementwise(self, op: Op, given: list[Named]) -> np.ndarray:
        dims = op.results[0].type.dims
        lined = [g.along(dims) for g in given]
        if op.name in CHOOSES:
            pair = (*lined, Named(dims, np.zeros(()), np.zeros(())))[:2]
            must_agree(op.name, pair[0].data, pair[1].data, pair[0].seen, pair[1].seen)
        if op.name in COMPARES:
            made = ELEMENTWISE[op.name](*(g.seen for g in lined))
        else:
            made = ELEMENTWISE[op.name](*(g.data for g in lined))
        return np.broadcast_to(made, [self.sizes[d] for d in dims])

    def do_cast(self, op: Op, x: Named) -> np.ndarray:
        kinds = {"f32": np.float64, "i32": np.int64, "bool": np.bool_}
        return x.data.astype(kinds[op.attr["dtype"]])

    # ---- along dims

    def folded(self, op: Op, x: Named) -> Named:
        """x with the dims of `over` as one last axis."""
        over = _tuple(op.attr["over"])
        rest = tuple(d for d in x.dims if d not in over)
        lined = x.along((*rest, *over))
        shape = (*(self.sizes[d] for d in rest), -1)
        return Named((*rest, "."), lined.data.reshape(shape), lined.seen.reshape(shape))

    def unfolded(self, op: Op, x: Named, data: np.ndarray) -> np.ndarray:
        """The inverse of `folded`, for a result with the dims of x."""
        over = _tuple(op.attr["over"])
        dims = (*(d for d in x.dims if d not in over), *over)
        data = data.reshape([self.sizes[d] for d in dims])
        return data.transpose([dims.index(d) for d in x.dims])

    def all_pairs(self, op: Op, x: Named) -> None:
        must_agree(
            op.name, x.data[..., :, None], x.data[..., None, :],
            x.seen[..., :, None], x.seen[..., None, :],
        )  # fmt: skip

    def against_best(self, op: Op, x: Named, sign: int) -> None:
        """The winner of each row against the others."""
        best = np.argmax(sign * x.seen, -1)[..., None]
        winner = (np.take_along_axis(a, best, -1) for a in (x.data, x.seen))
        data, seen = winner
        must_agree(op.name, data, x.data, seen, x.seen)

    def do_sum(self, op: Op, x: Named) -> np.ndarray:
        return self.folded(op, x).data.sum(-1)

    def do_mean(self, op: Op, x: Named) -> np.ndarray:
        return self.folded(op, x).data.mean(-1)

    def do_max(self, op: Op, x: Named) -> np.ndarray:
        rows = self.folded(op, x)
        self.against_best(op, rows, 1)
        return rows.data.max(-1)

    def do_min(self, op: Op, x: Named) -> np.ndarray:
        rows = self.folded(op, x)
        self.against_best(op, rows, -1)
        return rows.data.min(-1)

    def do_argmax(self, op: Op, x: Named) -> np.ndarray:
        rows = self.folded(op, x)
        self.against_best(op, rows, 1)
        return _each_row(rows.seen, lambda row: _ranked(row)[0], ())

    def do_softmax(self, op: Op, x: Named) -> np.ndarray:
        return self.unfolded(op, x, np.exp(_log_softmax(self.folded(op, x).data)))

    def do_logsumexp(self, op: Op, x: Named) -> np.ndarray:
        return _logsumexp(self.folded(op, x).data)

    def do_cumsum(self, op: Op, x: Named) -> np.ndarray:
        total = np.cumsum(self.folded(op, x).data, -1)
        return self.unfolded(op, x, total)

    def do_dot(self, op: Op, a: Named, b: Named) -> np.ndarray:
        out, over = op.results[0].type.dims, _tuple(op.attr["over"])
        dims = (*out, *over)
        return (a.along(dims).data * b.along(dims).data).sum(tuple(range(len(out), len(dims))))

    # ---- indices and shapes

    def do_top_k(self, op: Op, x: Named) -> tuple[np.ndarray, np.ndarray]:
        rows, k = self.folded(op, x), op.attr["k"]
        self.all_pairs(op, rows)
        index = _each_row(rows.seen, lambda row: _ranked(row, signed_zeros=True)[:k], (k,))
        return np.take_along_axis(rows.data, index, -1), index

    def do_one_hot(self, op: Op, index: Named) -> np.ndarray:
        return (index.data[..., None] == np.arange(self.sizes[op.attr["dim"]])).astype(np.float64)

    def do_iota(self, op: Op) -> np.ndarray:
        return np.arange(self.sizes[op.attr["dim"]])

    def do_take(self, op: Op, x: Named, index: Named) -> np.ndarray:
        (over,) = _tuple(op.attr["over"])
        out = op.results[0].type.dims
        lined, at = x.along((*out, over)), index.along(out)
        made = np.zeros([self.sizes[d] for d in out])
        for i in range(self.sizes[over]):
            made = made + np.where(at.data == i, lined.data[..., i], 0.0)
        return made

    def do_split(self, op: Op, x: Named) -> np.ndarray:
        return x.data.reshape([self.sizes[d] for d in op.results[0].type.dims])

    do_merge = do_split

    def do_concat(self, op: Op, a: Named, b: Named) -> np.ndarray:
        return np.concatenate([a.data, b.data], op.results[0].type.dims.index(op.attr["into"]))

    # ---- draws and foreign functions

    def draw(self, op: Op, key: Any, sample: Callable[..., Any]) -> np.ndarray:
        """One key per draw; with groups, one per draw and group."""
        dims, key = op.attr["dims"], jax.random.fold_in(key, op.attr["stream"])
        shape = [self.sizes[d] for d in dims]
        if dims[:1] != ("G",):
            return np.asarray(sample(key, tuple(shape), jnp.float32))
        keys = [jax.random.fold_in(key, g) for g in range(shape[0])]
        return np.stack([np.asarray(sample(k, tuple(shape[1:]), jnp.float32)) for k in keys])

    def do_normal(self, op: Op, key: Any) -> np.ndarray:
        return self.draw(op, key, jax.random.normal)

    def do_uniform(self, op: Op, key: Any) -> np.ndarray:
        return self.draw(op, key, jax.random.uniform)

    def do_call(self, op: Op, x: Named, y: Named) -> np.ndarray:
        """`foreign` of instructions.py: the mean is over what the function sees of y."""
        batch, dims = op.attr["batch"], op.results[0].type.dims
        seen = tuple(i for i, d in enumerate(y.dims) if d not in batch)
        mean = np.cos(y.data).mean(seen) if seen else np.cos(y.data)
        kept = Named(tuple(d for d in y.dims if d in batch), mean, mean).along(dims)
        shift = dict(op.attr["settings"])["shift"]
        return np.sin(x.along(dims).data + shift) * kept.data

    # ---- routing

    def do_assign(self, op: Op, weight: Named, expert: Named, *priority: Named) -> Path:
        groups, tokens, choices = expert.data.shape
        if priority:
            self.all_pairs(op, Named((), priority[0].data, priority[0].seen))
        places: dict[tuple[int, int, int], tuple[int, int]] = {}
        for g in range(groups):
            order = _ranked(priority[0].seen[g]) if priority else range(tokens)
            length = [0] * self.sizes["E"]
            for k in range(choices):
                for s in order:
                    e = int(expert.data[g, s, k])
                    if not 0 <= e < self.sizes["E"]:
                        continue
                    if length[e] < op.attr["capacity"]:
                        places[g, s, k] = (e, length[e])
                    length[e] += 1
        return Path("tokens", weight.data, places)

    def do_assign_items(self, op: Op, weight: Named, token: Named) -> Path:
        return Path("items", weight.data, token.data)

    def do_dense_route(self, op: Op, weight: Named) -> Path:
        return Path("soft", weight.data)

    def do_kept(self, op: Op, path: Path) -> np.ndarray:
        made = np.ones(path.weight.shape, bool)
        if path.kind == "tokens":
            for at in np.ndindex(path.weight.shape):
                made[at] = at in path.places
        return made

    def moves(self, path: Path) -> list[tuple[int, int, int, int, float]]:
        """All (group, token, expert, place, weight) along which rows move."""
        found = []
        for at in np.ndindex(path.weight.shape):
            if path.kind == "soft":
                found.append((*at, path.weight[at]))
            elif path.kind == "items":
                g, e, c = at
                if 0 <= path.places[at] < self.sizes["S"]:
                    found.append((g, int(path.places[at]), e, c, path.weight[at]))
            elif at in path.places:
                found.append((at[0], at[1], *path.places[at], path.weight[at]))
        return found

    def do_dispatch(self, op: Op, path: Path, x: Named) -> np.ndarray:
        rows = np.zeros([self.sizes[d] for d in op.results[0].type.dims])
        for g, s, e, c, weight in self.moves(path):
            rows[g, e, c] += x.data[g, s] * (weight if op.attr.get("weighted") else 1.0)
        return rows

    def do_combine(self, op: Op, path: Path, y: Named) -> np.ndarray:
        made = np.zeros([self.sizes[d] for d in op.results[0].type.dims])
        for g, s, e, c, weight in self.moves(path):
            made[g, s] += y.data[g, e, c] * weight
        return made


def _tuple(over: Any) -> tuple[str, ...]:
    return (over,) if isinstance(over, str) else tuple(over)


def _ranked(row: np.ndarray, *, signed_zeros: bool = False) -> list[int]:
    """Indices from the largest to the smallest value, equal ones in order.

    With signed_zeros, -0.0 is less than 0.0.
    """
    below = np.signbit(row) if signed_zeros else np.zeros(len(row), bool)
    return sorted(range(len(row)), key=lambda i: (-row[i], below[i], i))


def _each_row(rows: np.ndarray, fn: Callable[[np.ndarray], Any], shape: tuple[int, ...]) -> Any:
    made = [fn(row) for row in rows.reshape(-1, rows.shape[-1])]
    return np.asarray(made, np.int64).reshape((*rows.shape[:-1], *shape))


def _logsumexp(rows: np.ndarray) -> np.ndarray:
    most = rows.max(-1)
    return most + np.log(np.exp(rows - most[..., None]).sum(-1))


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    return rows - _logsumexp(rows)[..., None]


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])

ELEMENTWISE: dict[str, Callable[..., np.ndarray]] = {
    "neg": lambda x: -x,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": _erf,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": lambda x: x * x,
    "abs": np.abs,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": _gelu,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0),
    "normal_cdf": lambda x: 0.5 * _erfc(-x / math.sqrt(2)),
    "stop_gradient": lambda x: x,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "mod": lambda x, y: x - y * np.floor_divide(x, y),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "logical_not": np.logical_not,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "select": np.where,
}
COMPARES = ("eq", "ne", "lt", "le", "gt", "ge")
CHOOSES = (*COMPARES, "maximum", "minimum", "relu", "abs")
"""Ops whose value or derivative jumps where their operands are equal; one operand: to 0."""
