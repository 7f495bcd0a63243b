"""The words of the DSL: what a router or expert may call on traced values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from moegen.dsl.specs import ArraySpec
from moegen.dsl.traced import (
    Traced,
    TracedKey,
    TracedRoute,
    current,
    emit,
    located,
    traced,
    visible,
)
from moegen.errors import DimError, ShapeError, TraceError, did_you_mean
from moegen.ir.types import CAPACITY, CHOICE, EXPERT, GROUP, TOKEN
from moegen.ops.call import remember
from moegen.ops.named import dims_tuple

Dims = str | tuple[str, ...]


def _unary(name: str, doc: str) -> Callable[[Any], Traced]:
    def word(x: Any) -> Traced:
        return emit(name, x)  # type: ignore[no-any-return]

    word.__name__ = word.__qualname__ = name
    word.__doc__ = doc
    return word


exp = _unary("exp", "Exponential of each element.")
log = _unary("log", "Natural logarithm of each element.")
tanh = _unary("tanh", "Hyperbolic tangent of each element.")
erf = _unary("erf", "Gauss error function of each element.")
sqrt = _unary("sqrt", "Square root of each element.")
rsqrt = _unary("rsqrt", "One over the square root of each element.")
square = _unary("square", "Square of each element.")
abs = _unary("abs", "Absolute value of each element.")
relu = _unary("relu", "max(x, 0) of each element.")
gelu = _unary("gelu", "GELU in its tanh form (arXiv:1606.08415) of each element.")
silu = _unary("silu", "x * sigmoid(x) of each element (arXiv:1702.03118).")
sigmoid = _unary("sigmoid", "Logistic function of each element.")
softplus = _unary("softplus", "log(1 + exp(x)) of each element.")
normal_cdf = _unary("normal_cdf", "Distribution function of the standard normal.")
stop_gradient = _unary("stop_gradient", "The same value, through which no gradient flows.")


def maximum(a: Any, b: Any) -> Traced:
    """The larger of two values, element by element."""
    return emit("maximum", a, b)  # type: ignore[no-any-return]


def minimum(a: Any, b: Any) -> Traced:
    """The smaller of two values, element by element."""
    return emit("minimum", a, b)  # type: ignore[no-any-return]


def where(condition: Traced, a: Any, b: Any) -> Traced:
    """A where the bool condition holds, else b; the one not taken gets no gradient."""
    return emit("select", condition, a, b)  # type: ignore[no-any-return]


def cast(x: Traced, dtype: str) -> Traced:
    """Converts elements to "f32", "bf16", "f16", "i32" or "bool"; the same dtype costs nothing."""
    return x if traced(x).dtype == dtype else emit("cast", x, dtype=dtype)


def dequantize(codes: Traced, scale: Traced, dtype: str) -> Traced:
    """Weights [D, F] of codes (i8 or f8e4m3) times their columns' scales [F], in a real dtype.

    No array of them is made where their product can be scaled instead (`passes/fuse_scales`).
    """
    return cast(cast(codes, traced(scale).dtype) * scale, dtype)


def dot(a: Traced, b: Traced, *, over: Dims) -> Traced:
    """Sum of products over dims that both have; other shared dims are batch dims.

    Result dims are a's, then b's own, without those summed; the dims of tokens or rows and
    those that ride along stand in front in any case.
    """
    names = visible(dims_tuple(over))
    natural = tuple(
        d for d in dict.fromkeys((*traced(a).type.dims, *traced(b).type.dims)) if d not in names
    )
    hidden = current().hidden
    lead = (*hidden, CAPACITY if EXPERT in hidden else TOKEN)
    out = (*(d for d in lead if d in natural), *(d for d in natural if d not in lead))
    return emit("dot", a, b, over=names, out=None if out == natural else out)  # type: ignore[no-any-return]


def sum(x: Traced, *, over: Dims) -> Traced:
    """Sum over dims."""
    return emit("sum", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def mean(x: Traced, *, over: Dims) -> Traced:
    """Mean over dims."""
    return emit("mean", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def max(x: Traced, *, over: Dims) -> Traced:
    """Largest element over dims; equal winners share the gradient."""
    return emit("max", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def min(x: Traced, *, over: Dims) -> Traced:
    """Smallest element over dims; equal winners share the gradient."""
    return emit("min", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def argmax(x: Traced, *, over: str) -> Traced:
    """Index of the largest element along a dim, i32, the lowest index on ties."""
    return emit("argmax", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def softmax(x: Traced, *, over: Dims) -> Traced:
    """exp(x) normalised to sum 1 over dims."""
    return emit("softmax", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def logsumexp(x: Traced, *, over: Dims) -> Traced:
    """Logarithm of the sum of exponentials over dims."""
    return emit("logsumexp", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def log_softmax(x: Traced, *, over: Dims) -> Traced:
    """Logarithm of the softmax over dims."""
    return x - logsumexp(x, over=over)  # type: ignore[no-any-return]


def cumsum(x: Traced, *, over: str) -> Traced:
    """Running sum along a dim."""
    return emit("cumsum", x, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def cv2(x: Traced, *, over: Dims) -> Traced:
    """Squared coefficient of variation: population variance over squared mean.

    Equal to (std / mean)^2, with a finite gradient where all elements are equal.
    """
    average = mean(x, over=over)
    return mean(square(x - average), over=over) / square(average)  # type: ignore[no-any-return]


def one_hot(index: Traced, dim: str, dtype: str = "f32") -> Traced:
    """1 at each index along a new last dim, 0 elsewhere; all 0 for an index out of range."""
    return emit("one_hot", index, dim=dim, dtype=dtype)  # type: ignore[no-any-return]


def iota(dim: str, length: int | None = None) -> Traced:
    """The index along a dim, i32; with a length, the dim may be a new one."""
    if length is not None:
        current().builder.dims.define(dim, length)
    return emit("iota", dim=dim)  # type: ignore[no-any-return]


def take(x: Traced, index: Traced, *, over: str) -> Traced:
    """The elements of x at i32 indices along a dim; 0 for an index out of range."""
    return emit("take", x, index, over=visible(dims_tuple(over)))  # type: ignore[no-any-return]


def top_k(x: Traced, k: int, *, over: str, dim: str = CHOICE) -> tuple[Traced, Traced]:
    """The k largest elements along a dim and their indices; ties go to the lowest index.

    -0.0 counts as less than 0.0, as in jax.lax.top_k. Both results have the new last dim `dim`.
    Needs 1 <= k <= the size of `over`.
    """
    (name,) = visible(dims_tuple(over))
    return emit("top_k", x, over=name, k=k, dim=dim)  # type: ignore[no-any-return]


def normal(key: TracedKey, *, like: Traced) -> Traced:
    """Standard normal draws with the dims and dtype of `like`, keyed by global group index."""
    return _draw("normal", key, like)


def uniform(key: TracedKey, *, like: Traced) -> Traced:
    """Uniform draws in [0, 1) with the dims and dtype of `like`, keyed by global group index."""
    return _draw("uniform", key, like)


def _draw(name: str, key: TracedKey, like: Traced) -> Traced:
    dims = tuple(d for d in traced(like).type.dims if d != GROUP)
    lead = (GROUP,) if GROUP in like.type.dims else ()
    stream = current().next_stream()
    return emit(name, key, dims=(*lead, *dims), dtype=like.dtype, stream=stream)  # type: ignore[no-any-return]


def dropout(key: TracedKey, x: Traced, rate: float) -> Traced:
    """Sets each element to 0 with probability `rate` and scales the others by 1/(1-rate)."""
    if rate == 0.0:
        return x
    return where(uniform(key, like=x) >= rate, x / (1.0 - rate), 0.0)


def size(dim: str) -> int:
    """The size of a dim, a Python int: shapes are known while tracing.

    Raises:
      DimError: if there is no such dim.
    """
    dims = current().builder.dims
    if dim not in dims:
        raise located(
            DimError(
                f'no dim "{dim}"{did_you_mean(dim, dims.as_dict())}',
                fix=f"use one of {', '.join(dims.as_dict())}",
            )
        )
    return dims[dim]


def compute_capacity(
    num_tokens: int,
    num_experts: int,
    factor: float,
    *,
    rounding: str = "ceil",
    multiple_of: int | None = 4,
) -> int:
    """Rows per expert and group: num_tokens * factor / num_experts, rounded.

    Args:
      num_tokens: assignments per group; S * k for token choice.
      num_experts: E.
      factor: 1.0 leaves no room for imbalance.
      rounding: "ceil" (the released code) or "round" (the paper; halves go to even).
      multiple_of: the result is raised to a multiple of this; None or 0 for no rounding.

    Raises:
      ShapeError: if it is less than 1 before the last rounding.

    Source: arXiv:2106.05974, section 2.
    """
    if rounding not in ("ceil", "round"):
        raise ShapeError(f'rounding "{rounding}" is unknown', fix='use "ceil" or "round"')
    exact = num_tokens * factor / num_experts
    capacity = math.ceil(exact) if rounding == "ceil" else round(exact)
    if capacity < 1:
        raise ShapeError(
            f"capacity {capacity} is less than 1 "
            f"(tokens={num_tokens}, factor={factor}, experts={num_experts})",
            fix="raise the capacity factor or the number of tokens per group",
        )
    if multiple_of:
        capacity = math.ceil(capacity / multiple_of) * multiple_of
    return capacity


def capacity(k: int, factor: float, *, rounding: str = "ceil", multiple_of: int | None = 4) -> int:
    """Rows per expert and group for token choice with k choices; see `compute_capacity`."""
    try:
        return compute_capacity(
            size(TOKEN) * k, size(EXPERT), factor, rounding=rounding, multiple_of=multiple_of
        )
    except ShapeError as error:
        raise located(error) from None


def assign(
    expert: Traced,
    weight: Traced,
    *,
    capacity: int | None,
    priority: Traced | str | None = None,
    scope: str = "group",
    distinct: bool = True,
) -> TracedRoute:
    """Token choice: puts each choice into its expert's buffer and drops what does not fit.

    Args:
      expert: i32[S, K], the choices of each token; a negative one takes no place.
      weight: [S, K], the weight of each choice in the output.
      capacity: rows per expert and group (see `capacity`); None for dropless.
      priority: who is served first: None for token order, "gate" for the largest weight
        first, or a value per token [S]. First choices always precede second ones.
      scope: "group": each group has its own buffers, and its own order. "batch": all groups
        share them, an expert takes the first G * capacity choices of all, wherever they are.
      distinct: whether a token never names one expert twice, as from `top_k`; it bounds
        what dropless needs.

    Returns:
      The route, to be returned from the router.

    Source: arXiv:2106.05974, sections 2 and 3.
    """
    if isinstance(priority, str):
        if priority != "gate":
            raise located(
                TraceError(
                    f'priority "{priority}" is unknown', fix='None, "gate", or a value per token'
                )
            )
        priority = max(weight, over=CHOICE)
    ordered = () if priority is None else (priority,)
    if scope not in ("group", "batch") or (scope == "batch" and capacity is None):
        raise located(
            TraceError(
                f'scope "{scope}" with capacity={capacity}',
                fix='"group", or "batch" with a capacity: without one, all are served',
            )
        )
    if scope == "batch":
        expert = where(emit("served", expert, *ordered, capacity=capacity), expert, -1)
        capacity, ordered = None, ()  # in its group, everyone left has a place
    if capacity is None:
        capacity = size(TOKEN) * (1 if distinct else size(CHOICE))
    return emit("assign", weight, expert, *ordered, capacity=capacity)  # type: ignore[no-any-return]


def assign_items(token: Traced, weight: Traced) -> TracedRoute:
    """Expert choice: each expert's slots take the tokens they name.

    Args:
      token: i32[E, C], as from `mg.top_k(gates, capacity, over="S", dim="C")`.
      weight: [E, C], the weight of each slot's row in the output of its token.

    Source: arXiv:2202.09368.
    """
    return emit("assign_items", weight, token)  # type: ignore[no-any-return]


def soft_route(dispatch: Traced, combine: Traced) -> TracedRoute:
    """Soft routing: every slot reads a mix of all tokens, every token one of all slots.

    Args:
      dispatch: [S, E, C], the weight of each token in each slot.
      combine: [S, E, C], the weight of each slot in each token.

    Source: arXiv:2308.00951.
    """
    into, out = emit("dense_route", dispatch), emit("dense_route", combine)
    return TracedRoute(out.value, dispatch=into.value)


def merge(x: Traced, dims: Dims, into: str) -> Traced:
    """Makes adjacent dims one; the last of them runs fastest."""
    return emit("merge", x, dims=visible(dims_tuple(dims)), into=into)  # type: ignore[no-any-return]


def split(x: Traced, dim: str, **into: int) -> Traced:
    """Makes one dim several: `split(gates, "E", H=4, Q=8)`; the last runs fastest."""
    for name, length in into.items():
        current().builder.dims.define(name, length)
    return emit("split", x, dim=dim, into=visible(tuple(into)))  # type: ignore[no-any-return]


def concat(a: Traced, b: Traced, dims: tuple[str, str], into: str) -> Traced:
    """One dim of a followed by one of b as a new dim: `concat(logits, null, ("E", "Z"), "A")`."""
    first, second = visible(dims)
    return emit("concat", a, b, dims=(first, second), into=into)  # type: ignore[no-any-return]


def kept(route: TracedRoute) -> Traced:
    """bool[S, K]: whether each choice has a place in its expert's buffer."""
    return emit("kept", route)  # type: ignore[no-any-return]


def call(
    fn: Callable[..., Any], *args: Traced, out: ArraySpec, **settings: int | float | str
) -> Traced:
    """Any JAX function as one op, differentiated by jax.vjp.

    Args:
      fn: takes arrays without the dims that ride along, returns one array.
      *args: traced values.
      out: the type of the result, for example mg.f32["S E"].
      **settings: keyword arguments of fn that stay the same, such as a number of iterations.
    """
    hidden = current().hidden
    given = {d for a in args for d in traced(a).type.dims}
    batch = tuple(d for d in hidden if d in given)
    dtype = out.dtype or args[0].dtype
    dims = (*batch, *visible(out.dims))
    for name, value in settings.items():
        if not isinstance(value, int | float | str):
            raise located(
                TraceError(
                    f"setting {name} of {getattr(fn, '__name__', fn)} is a {type(value).__name__}",
                    fix="settings are numbers and strings; give traced values as arguments",
                )
            )
    fixed = tuple(settings.items()) or None
    return emit(  # type: ignore[no-any-return]
        "call", *args, fn=remember(fn), batch=batch, dims=dims, dtype=dtype, settings=fixed
    )
