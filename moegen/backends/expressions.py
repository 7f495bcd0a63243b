"""Elementwise ops as Python expressions, alone or nested in an epilogue."""

from __future__ import annotations

from typing import Any

from moegen.backends.source import Emitter, dims_of, literal
from moegen.ir.program import Literal, Op, Value
from moegen.ir.types import Tensor
from moegen.kernels import activations
from moegen.ops.epilogue import operand_named, walk

EXPRESSIONS: dict[str, str] = {
    "neg": "-{0}",
    "exp": "jnp.exp({0})",
    "log": "jnp.log({0})",
    "tanh": "jnp.tanh({0})",
    "erf": "jax.scipy.special.erf({0})",
    "sqrt": "jnp.sqrt({0})",
    "rsqrt": "jax.lax.rsqrt({0})",
    "square": "jnp.square({0})",
    "abs": "jnp.abs({0})",
    "relu": "jax.nn.relu({0})",
    "gelu": "gelu({0})",
    "silu": "silu({0})",
    "sigmoid": "jax.nn.sigmoid({0})",
    "softplus": "jax.nn.softplus({0})",
    "normal_cdf": "jax.scipy.stats.norm.cdf({0})",
    "gelu_grad": "gelu_grad({0})",
    "silu_grad": "silu_grad({0})",
    "sigmoid_grad": "sigmoid_grad({0})",
    "normal_pdf": "normal_pdf({0})",
    "stop_gradient": "{0}",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "mod": "{0} % {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "logical_not": "~{0}",
    "logical_and": "{0} & {1}",
    "logical_or": "{0} | {1}",
    "maximum": "jnp.maximum({0}, {1})",
    "minimum": "jnp.minimum({0}, {1})",
    "select": "jnp.where({0}, {1}, {2})",
    "cast": "{0}.astype({dtype})",
}
"""How each elementwise op is written; operands are in braces."""
_HELPERS = {
    f.__name__: f
    for f in (
        activations.gelu,
        activations.gelu_grad,
        activations.silu,
        activations.silu_grad,
        activations.sigmoid_grad,
        activations.normal_pdf,
    )
}
JNP_DTYPES = {
    "f64": "jnp.float64",
    "f32": "jnp.float32",
    "bf16": "jnp.bfloat16",
    "f16": "jnp.float16",
    "i32": "jnp.int32",
    "i8": "jnp.int8",
    "u8": "jnp.uint8",
    "u32": "jnp.uint32",
    "f8e4m3": "jnp.float8_e4m3fn",
    "bool": "jnp.bool_",
}


def apply_op(e: Emitter, name: str, operands: list[str], attrs: dict[str, Any]) -> str:
    """Writes one elementwise op; operands that are expressions are put in parentheses."""
    if name in _HELPERS:
        e.use(_HELPERS[name])
    filled = [o if _atomic(o) else f"({o})" for o in operands]
    if name in ("maximum", "minimum", "select") or EXPRESSIONS[name].endswith(("({0})",)):
        filled = operands
    return EXPRESSIONS[name].format(*filled, dtype=JNP_DTYPES.get(attrs.get("dtype", ""), ""))


def elementwise(e: Emitter, op: Op) -> list[str]:
    """Template of every elementwise op."""
    want = dims_of(op.result)
    operands = [e.aligned(o, want) for o in op.operands]
    return [f"{e.name(op.result)} = {apply_op(e, op.name, operands, op.attr)}"]


def epilogue(e: Emitter, op: Op, product: str, extra: tuple[Any, ...]) -> list[str]:
    """Statements of a product: the product itself, or `acc` and the expressions over it."""
    if "epilogue" not in op.attr:
        return [f"{e.name(op.result)} = {product}"]
    want = dims_of(op.results[0])
    texts = epilogue_texts(e, op, [e.aligned(v, want) for v in extra])
    lines = [f"{e.name(value)} = {text}" for value, text in zip(op.results, texts, strict=True)]
    return [f"acc = {product}", *lines]


def epilogue_texts(e: Emitter, op: Op, extra: list[str]) -> list[str]:
    """The expressions of an epilogue over `acc` and these operands, one per result."""

    def leaf(name: str) -> str:
        return str(operand_named(name, "acc", extra))

    def apply(name: str, args: list[Any], attrs: dict[str, Any]) -> str:
        texts = [literal(a) if isinstance(a, Literal) else a for a in args]
        return apply_op(e, name, texts, attrs)

    return [walk(text, leaf, apply) for text in op.attr["epilogue"]]


def _atomic(text: str) -> bool:
    """Whether an expression needs no parentheses: a name, a number, a call, an index."""
    depth = 0
    for i, c in enumerate(text):
        depth += c in "([" and 1
        depth -= c in ")]" and 1
        if depth == 0 and (c == " " or (c in "-~" and i == 0)):
            return False
    return True


def tensor_dtype(value: Value) -> str:
    """The element type of a value as jnp source."""
    assert isinstance(value.type, Tensor)
    return JNP_DTYPES[value.type.dtype]
