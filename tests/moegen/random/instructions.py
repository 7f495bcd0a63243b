"""The instructions of random functions: each picks operands from the pool and adds its result.

An instruction has two numbers that say what it picks. Where nothing suits, it does nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import moegen as mg
from moegen.dsl.specs import ArraySpec
from tests.moegen.random.pool import (
    CLEAR,
    LIMIT,
    MOST_DIMS,
    Entry,
    Pool,
    bounded,
    product_span,
    quotient_span,
    scaled_span,
)

Instruction = Callable[[Pool, int, int], None]
INSTRUCTIONS: dict[str, Instruction] = {}
ACROSS_ROWS: set[str] = set()
"""Those that look at several rows of an expert at once."""


def instruction(name: str) -> Callable[[Instruction], Instruction]:
    def add(function: Instruction) -> Instruction:
        INSTRUCTIONS[name] = function
        return function

    return add


def is_float(e: Entry) -> bool:
    return e.is_float


def is_bool(e: Entry) -> bool:
    return e.is_bool


def is_int(e: Entry) -> bool:
    return e.is_int


# ---- one operand


def _rising(fn: Callable[[float], float], least: float = -LIMIT, most: float = LIMIT) -> Any:
    """The span of a rising function, for arguments in least..most."""

    def span(low: float, high: float) -> tuple[float, float] | None:
        return (fn(low), fn(high)) if least <= low and high <= most else None

    return span


def _magnitudes(low: float, high: float) -> tuple[float, float]:
    ends = abs(low), abs(high)
    return (0.0 if low <= 0 <= high else min(ends)), max(ends)


def _softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


UNARY: dict[str, Callable[[float, float], tuple[float, float] | None]] = {
    "exp": _rising(math.exp, most=3.0),
    "log": _rising(math.log, least=CLEAR),
    "sqrt": _rising(math.sqrt, least=CLEAR),
    "rsqrt": _rising(lambda x: x**-0.5, least=CLEAR),
    "tanh": _rising(math.tanh),
    "erf": _rising(math.erf),
    "sigmoid": _rising(lambda x: 1 / (1 + math.exp(-x))),
    "softplus": _rising(_softplus),
    "normal_cdf": _rising(lambda x: 0.5 * math.erfc(-x / math.sqrt(2))),
    "relu": _rising(lambda x: max(x, 0.0)),
    "gelu": lambda low, high: (-0.2, max(high, 0.0)),
    "silu": lambda low, high: (-0.3, max(high, 0.0)),
    "square": lambda low, high: tuple(x * x for x in _magnitudes(low, high)),
    "abs": _magnitudes,
    "stop_gradient": lambda low, high: (low, high),
}
"""Each unary op with the span of its results, or None where it must not be used."""


def _unary(name: str) -> Instruction:
    span_of, fn = UNARY[name], getattr(mg, name)

    def run(pool: Pool, a: int, b: int) -> None:
        def suits(e: Entry) -> bool:
            span = span_of(e.low, e.high) if e.is_float else None
            return span is not None and bounded(min(span), max(span))

        if x := pool.pick(a, suits):
            pool.add(fn(x.value), *span_of(x.low, x.high))

    return run


for _name in UNARY:
    INSTRUCTIONS[_name] = _unary(_name)

ARITHMETIC: tuple[Callable[[Any], Any], ...] = (
    lambda x: x * 0.5,
    lambda x: x + 0.5,
    lambda x: -x,
    lambda x: 1.0 - x,
    lambda x: x - 1.25,
    lambda x: 0.0 + x,
    lambda x: 1.0 * x,
    lambda x: x / 2.0,
    lambda x: x / 1.0 - 0.0,
    lambda x: 1.5 * x + 0.0,
)


@instruction("number")
def _number(pool: Pool, a: int, b: int) -> None:
    form = ARITHMETIC[b % len(ARITHMETIC)]
    x = pool.pick(a, is_float, lambda e: bounded(*sorted((form(e.low), form(e.high)))))
    if x:
        pool.add(form(x.value), form(x.low), form(x.high))


@instruction("clip")
def _clip(pool: Pool, a: int, b: int) -> None:
    """The larger or smaller of a value and a number, the number on either side."""
    c = (0.0, 0.25, -0.5, -math.inf)[b % 4]
    if x := pool.pick(a, is_float):
        if b % 3 == 2 and c > -math.inf:
            pool.add(mg.minimum(c, x.value), min(x.low, c), min(x.high, c))
        else:
            args = (x.value, c) if b % 3 else (c, x.value)
            pool.add(mg.maximum(*args), max(x.low, c), max(x.high, c))


@instruction("inverse")
def _inverse(pool: Pool, a: int, b: int) -> None:
    one = Entry(None, 1.0, 1.0)
    if x := pool.pick(a, is_float, lambda e: quotient_span(one, e) is not None):
        pool.add(1.0 / x.value, *quotient_span(one, x))


# ---- two operands


def _same_kind(pool: Pool, x: Entry) -> Callable[[Entry], bool]:
    return lambda e: e.value.dtype == x.value.dtype and pool.fits(e.dims, x.dims)


def _binary(pool: Pool, a: int, b: int, fn: Any, span_of: Any) -> None:
    def spans(x: Entry, y: Entry) -> bool:
        span = span_of(x, y)
        return span is not None and bounded(*span)

    if (x := pool.pick(a, is_float)) is None:
        return
    if y := pool.pick(b, _same_kind(pool, x), lambda e: spans(x, e)):
        pool.add(fn(x.value, y.value), *span_of(x, y))


BINARY: dict[str, tuple[Any, Any]] = {
    "add": (lambda x, y: x + y, lambda a, b: (a.low + b.low, a.high + b.high)),
    "sub": (lambda x, y: x - y, lambda a, b: (a.low - b.high, a.high - b.low)),
    "mul": (lambda x, y: x * y, product_span),
    "div": (lambda x, y: x / y, quotient_span),
    "maximum": (mg.maximum, lambda a, b: (max(a.low, b.low), max(a.high, b.high))),
    "minimum": (mg.minimum, lambda a, b: (min(a.low, b.low), min(a.high, b.high))),
}
for _name, (_fn, _span_of) in BINARY.items():
    INSTRUCTIONS[_name] = lambda pool, a, b, fn=_fn, span=_span_of: _binary(pool, a, b, fn, span)

COMPARE: dict[str, Any] = {
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
}


@instruction("compare")
def _compare(pool: Pool, a: int, b: int) -> None:
    fn = list(COMPARE.values())[a % len(COMPARE)]
    if (x := pool.pick(a // 2, lambda e: not e.is_bool)) is None:
        return
    number = (0.25 if b % 4 else 0.0) if x.is_float else 1
    y = pool.pick(b // 2, _same_kind(pool, x)) if b % 2 else None
    pool.add(fn(x.value, y.value if y else number))


@instruction("where")
def _where(pool: Pool, a: int, b: int) -> None:
    if (c := pool.pick(a, is_bool)) is None:
        return
    x = pool.pick(b, is_float, lambda e: pool.fits(e.dims, c.dims))
    if x is None:
        return
    number = (0.0, -1.0, 0.5)[b % 3]
    y = pool.pick(a + b, is_float, lambda e: pool.fits(e.dims, x.dims, c.dims)) if b % 2 else None
    y = y or Entry(number, number, number)
    args = (x.value, y.value) if a % 2 else (y.value, x.value)
    pool.add(mg.where(c.value, *args), min(x.low, y.low), max(x.high, y.high))


@instruction("logic")
def _logic(pool: Pool, a: int, b: int) -> None:
    if (x := pool.pick(a, is_bool)) is None:
        return
    y = pool.pick(b, _same_kind(pool, x))
    pool.add((~x.value, x.value & y.value, x.value | y.value)[b % 3])


@instruction("cast")
def _cast(pool: Pool, a: int, b: int) -> None:
    if x := pool.pick(a, lambda e: not e.is_float and bounded(e.low, e.high)):
        to_int = x.is_bool and b % 3 == 2
        pool.add(mg.cast(x.value, "i32" if to_int else "f32"), x.low, x.high)


@instruction("integer")
def _integer(pool: Pool, a: int, b: int) -> None:
    """Arithmetic of whole numbers: always in -20..20."""
    if (x := pool.pick(a, is_int)) is None:
        return
    y = pool.pick(b, _same_kind(pool, x))
    form = (a + b) % 4
    if form == 0:
        pool.add((x.value * 3 + y.value) % 5, 0, 4)
    elif form == 1:
        pool.add(mg.maximum(x.value, 1), max(x.low, 1), max(x.high, 1))
    elif form == 2 and bounded(2 * (x.low - y.high), 2 * (x.high - y.low)):
        pool.add(x.value - y.value, x.low - y.high, x.high - y.low)
    else:
        pool.add(mg.where(x.value > y.value, x.value, -1), min(-1, x.low), x.high)


# ---- along dims


def _subsets(dims: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Single dims first, then all of them, then pairs."""
    singles, pairs = [(d,) for d in dims], list(itertools.combinations(dims, 2))
    return [*singles, *([dims] if len(dims) > 2 else []), *pairs]


def _some_dims(pool: Pool, e: Entry, number: int, single: bool) -> tuple[str, ...]:
    """Dims to reduce: not the one of an expert's rows."""
    rows = pool.lead == "C"
    own = tuple(d for d in pool.own(e) if not (rows and d == "C"))
    found = [(d,) for d in own] if single else _subsets(own)
    return found[number % len(found)] if found else ()


def _reduced_span(name: str, x: Entry, n: int) -> tuple[float, float]:
    if name in ("sum", "cumsum"):
        return scaled_span(x, n)
    if name in ("logsumexp", "log_softmax"):
        high = x.high + math.log(n)
        return (x.low, high) if name == "logsumexp" else (x.low - high, 0.0)
    if name == "softmax":
        return min(1.0, math.exp(max(x.low - x.high, -50.0)) / n), 1.0
    return (0.0, n) if name in ("cv2", "argmax") else (x.low, x.high)


ALONG = (
    *("sum", "mean", "max", "min", "softmax", "logsumexp", "log_softmax", "cumsum", "argmax"),
    "cv2",
)


def _along(name: str) -> Instruction:
    fn, single = getattr(mg, name), name in ("cumsum", "argmax")

    def run(pool: Pool, a: int, b: int) -> None:
        def suits(e: Entry) -> bool:
            over = _some_dims(pool, e, b, single)
            n = math.prod(pool.sizes[d] for d in over)
            clear = name != "cv2" or e.low >= CLEAR
            return bool(over) and clear and bounded(*_reduced_span(name, e, n))

        if x := pool.pick(a, is_float, suits):
            over = _some_dims(pool, x, b, single)
            n = math.prod(pool.sizes[d] for d in over)
            pool.add(fn(x.value, over=over), *_reduced_span(name, x, n))

    return run


for _name in ALONG:
    INSTRUCTIONS[_name] = _along(_name)


@instruction("count")
def _count(pool: Pool, a: int, b: int) -> None:
    """Sums, running sums and extremes of whole numbers."""
    if x := pool.pick(a, is_int, lambda e: bool(_some_dims(pool, e, b, True))):
        (dim,) = _some_dims(pool, x, b, True)
        name = ("sum", "cumsum", "max", "min", "argmax")[b % 5]
        span = scaled_span(x, pool.sizes[dim]) if b % 5 < 2 else (x.low, x.high)
        if bounded(*span):
            span = (0, pool.sizes[dim] - 1) if name == "argmax" else span
            pool.add(getattr(mg, name)(x.value, over=dim), *span)


@instruction("dot")
def _dot(pool: Pool, a: int, b: int) -> None:
    def shared(e: Entry) -> tuple[str, ...]:
        return tuple(d for d in pool.own(x) if d in pool.own(e) and d != "C")

    def suits(e: Entry) -> bool:
        n = math.prod(pool.sizes[d] for d in shared(e))
        span = scaled_span(Entry(None, *product_span(x, e)), n)
        return bool(shared(e)) and bounded(*span) and pool.fits(x.dims, e.dims)

    if (x := pool.pick(a, is_float)) is None or (y := pool.pick(b, is_float, suits)) is None:
        return
    subsets = _subsets(shared(y))
    over = subsets[(a + b) % len(subsets)]
    n = math.prod(pool.sizes[d] for d in over)
    span = scaled_span(Entry(None, *product_span(x, y)), n)
    pool.add(mg.dot(x.value, y.value, over=over), *span)


def mix_rows(pool: Pool, a: int, b: int) -> None:
    """Only in experts: reads all rows of a buffer, which sorted rows cannot offer."""
    name = ("mean", "softmax", "cumsum", "max", "argmax")[b % 5]
    n = pool.sizes["C"]
    if x := pool.pick(a, is_float, lambda e: "C" in e.dims and bounded(*scaled_span(e, n))):
        pool.add(getattr(mg, name)(x.value, over="C"), *_reduced_span(name, x, n))


INSTRUCTIONS["mix_rows"] = mix_rows
ACROSS_ROWS.add("mix_rows")


# ---- indices and shapes


@instruction("top_k")
def _top_k(pool: Pool, a: int, b: int) -> None:
    k = 1 + b % 2

    def suits(e: Entry) -> bool:
        return bool(over(e)) and f"J{k}" not in e.dims

    def over(e: Entry) -> tuple[str, ...]:
        own = (d for d in pool.own(e) if d != "C" and pool.sizes[d] >= k)
        return tuple(own)

    if x := pool.pick(a, is_float, suits):
        dim = over(x)[b % len(over(x))]
        best, index = mg.top_k(x.value, k, over=dim, dim=f"J{k}")
        pool.sizes[f"J{k}"] = k
        pool.add(index, 0, pool.sizes[dim] - 1)
        pool.add(best, x.low, x.high)


@instruction("one_hot")
def _one_hot(pool: Pool, a: int, b: int) -> None:
    free = [d for d in pool.sizes if d not in ("G", "C", *pool.hidden)]
    dim = free[b % len(free)]
    if x := pool.pick(a, is_int, lambda e: dim not in e.dims and pool.fits(e.dims, (dim,))):
        pool.add(mg.one_hot(x.value, dim))


@instruction("take")
def _take(pool: Pool, a: int, b: int) -> None:
    if (x := pool.pick(a, is_float, lambda e: bool(_some_dims(pool, e, b, True)))) is None:
        return
    (over,) = _some_dims(pool, x, b, True)
    index = pool.pick(
        b, is_int, lambda e: over not in e.dims and pool.fits(e.dims, x.dims, (over,))
    )
    if index:
        pool.add(mg.take(x.value, index.value, over=over), min(x.low, 0.0), max(x.high, 0.0))


@instruction("iota")
def _iota(pool: Pool, a: int, b: int) -> None:
    known = [d for d in pool.sizes if d not in ("G", "C", *pool.hidden)]
    if b % 3:
        dim = known[a % len(known)]
        value = mg.iota(dim)
    else:
        length = 2 + a % 2 * 2
        dim = f"I{length}"
        pool.sizes[dim] = length
        value = mg.iota(dim, length)
    pool.add(value, 0, pool.sizes[dim] - 1)


@instruction("split")
def _split(pool: Pool, a: int, b: int) -> None:
    """An even dim becomes 2 times its half, or its half times 2."""

    def even(e: Entry) -> list[str]:
        return [d for d in pool.own(e) if d != "C" and pool.sizes[d] in (4, 6, 8)]

    def parts(dim: str) -> dict[str, int]:
        half = pool.sizes[dim] // 2
        return {"P2": 2, f"Q{half}": half} if b % 2 else {f"P{half}": half, "Q2": 2}

    def suits(e: Entry) -> bool:
        found = even(e)
        return bool(found) and not set(parts(found[b % len(found)])) & set(e.dims)

    if x := pool.pick(a, suits, lambda e: len(pool.own(e)) <= MOST_DIMS):
        dim = even(x)[b % len(even(x))]
        sizes = parts(dim)
        pool.sizes |= sizes
        pool.add(mg.split(x.value, dim, **sizes), x.low, x.high)


def _neighbours(pool: Pool, e: Entry) -> list[tuple[str, str]]:
    """Dims of an entry that follow each other, C left out."""
    pairs = itertools.pairwise(e.dims)
    return [p for p in pairs if not {"C", *pool.hidden} & set(p)]


@instruction("merge")
def _merge(pool: Pool, a: int, b: int) -> None:
    if x := pool.pick(a, lambda e: bool(_neighbours(pool, e))):
        pairs = _neighbours(pool, x)
        first, second = pairs[b % len(pairs)]
        into = f"{first}{second}"
        if into not in x.dims:
            pool.sizes[into] = pool.sizes[first] * pool.sizes[second]
            pool.add(mg.merge(x.value, (first, second), into), x.low, x.high)


@instruction("concat")
def _concat(pool: Pool, a: int, b: int) -> None:
    """A value with one dim doubled: followed by itself or by another of the same dims."""
    if (x := pool.pick(a, lambda e: bool(_some_dims(pool, e, b, True)))) is None:
        return
    y = pool.pick(b, lambda e: e.dims == x.dims and e.value.dtype == x.value.dtype)
    (dim,) = _some_dims(pool, x, b, True)
    into = f"{dim}_twice"
    if into not in x.dims and pool.fits(x.dims, x.dims) and len(into) < 16:
        pool.sizes[into] = 2 * pool.sizes[dim]
        both = mg.concat(x.value, y.value, (dim, dim), into)
        pool.add(both, min(x.low, y.low), max(x.high, y.high))


# ---- draws and foreign functions


@instruction("draw")
def _draw(pool: Pool, a: int, b: int) -> None:
    if pool.key is None or (x := pool.pick(a, is_float, lambda e: pool.own(e) != ())) is None:
        return
    if b % 2:
        pool.add(mg.uniform(pool.key, like=x.value), 0.0, 1.0)
    else:
        pool.add(mg.normal(pool.key, like=x.value), -6.0, 6.0)


def foreign(x: Any, y: Any, *, shift: float) -> Any:
    """What `call` calls: any dims for x and y, those of x for the result."""
    return jnp.sin(x + shift) * jnp.cos(y).mean()


@instruction("call")
def _call(pool: Pool, a: int, b: int) -> None:
    x = pool.pick(a, is_float)
    y = pool.pick(b, is_float)
    if x and y:
        out = ArraySpec("f32", pool.own(x))
        if set(y.dims) & set(pool.hidden) <= set(x.dims):
            shift = (0.0, 0.5)[b % 2]
            pool.add(mg.call(foreign, x.value, y.value, out=out, shift=shift), -1.0, 1.0)


# ---- what experts are made of


@instruction("norm")
def _norm(pool: Pool, a: int, b: int) -> None:
    """A layer norm without weights along one dim."""
    x = pool.pick(a, is_float, lambda e: bool(_some_dims(pool, e, b, True)) and e.high - e.low < 9)
    if x:
        (over,) = _some_dims(pool, x, b, True)
        centred = x.value - mg.mean(x.value, over=over)
        spread = mg.rsqrt(mg.mean(mg.square(centred), over=over) + 0.5)
        limit = 1.5 * (x.high - x.low)
        pool.add(centred * spread, -limit, limit)


@instruction("glu")
def _glu(pool: Pool, a: int, b: int) -> None:
    """A gated linear unit, plus the operand where the dims allow."""
    gate = (mg.silu, mg.sigmoid, mg.gelu, mg.relu)[b % 4]
    if (x := pool.pick(a, is_float, lambda e: bool(pool.own(e)))) is None:
        return
    for dim in pool.own(x):
        n = 3.0 * pool.sizes[dim]
        weights = [
            e for e in pool.entries
            if e.is_float and dim in e.dims and pool.lead not in e.dims and len(pool.own(e)) == 2
            and e.high <= 1 and e.low >= -1 and pool.fits(e.dims, x.dims)
        ]  # fmt: skip
        high = max(abs(x.low), abs(x.high)) * n / 3.0
        if len(weights) >= 2 and dim != "C" and bounded(-high * high, high * high):
            up, down = weights[0], weights[-1]
            made = gate(mg.dot(x.value, up.value, over=dim)) * mg.dot(x.value, down.value, over=dim)
            pool.add(made, -high * high, high * high)
            return
