"""Epilogues: elementwise expressions in text, over a product `acc` and operands `c0, c1, ...`.

`gelu(add(acc, c0))` names ops of the registry; numbers and dtype names stand for
themselves. The text is an attribute, so a fused program prints and parses as any other.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moegen.errors import VerifyError
from moegen.ir import registry
from moegen.ir.dims import Dims
from moegen.ir.placement import WHOLE
from moegen.ir.program import Literal, Op, Value, make_attrs
from moegen.ir.types import Tensor, placed

ACC = "acc"


def expression(value: Value, acc: Value, definitions: Mapping[str, Op], extra: list[Value]) -> str:
    """Writes how `value` is computed from `acc`; new outside operands are added to `extra`."""
    if value == acc:
        return ACC
    op = definitions.get(value.name)
    if op is None:
        if value not in extra:
            extra.append(value)
        return f"c{extra.index(value)}"
    args = [
        expression(o, acc, definitions, extra) if isinstance(o, Value) else repr(o.value)
        for o in op.operands
    ]
    args += [f"{name}={attr!r}" for name, attr in op.attrs]
    return f"{op.name}({', '.join(args)})"


def walk(text: str, leaf: Callable[[str], Any], apply: Callable[..., Any]) -> Any:
    """Evaluates an expression: `leaf(name)` for acc and c0.., `apply(op, args, attrs)` inside.

    Raises:
      VerifyError: if the text is not an expression over elementwise ops.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise VerifyError(f'epilogue "{text}" is not an expression') from None

    def visit(node: ast.expr) -> Any:
        if (number := _not_finite(node)) is not None:
            return Literal(number)
        if isinstance(node, ast.Name):
            return leaf(node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if not registry.lookup(node.func.id).elementwise:
                raise VerifyError(f"epilogue: {node.func.id} is not elementwise")
            attrs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            return apply(node.func.id, [visit(a) for a in node.args], attrs)
        try:
            return Literal(ast.literal_eval(node))
        except ValueError:
            raise VerifyError(f'epilogue "{text}" is not an expression over ops') from None

    return visit(tree)


def ops_of_epilogue(op: Op) -> list[str]:
    """The names of the elementwise ops in an op's epilogue, as often as they are in it."""
    found: list[str] = []

    def apply(name: str, args: list[object], attrs: dict[str, object]) -> None:
        found.append(name)

    for text in op.attr.get("epilogue", ()):
        walk(text, lambda name: None, apply)
    return found


def _not_finite(node: ast.expr) -> float | None:
    """inf, -inf and nan: numbers that Python has no literal for."""
    text = ast.unparse(node)
    return float(text) if text in ("inf", "-inf", "nan") else None


def infer_epilogue(
    dims: Dims, texts: Sequence[str], acc: Tensor, extra: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Types of a fused op's results; each must have the product's dims."""

    def apply(name: str, args: list[Any], attrs: dict[str, Any]) -> Any:
        return registry.lookup(name).types(dims, *args, **attrs)[0]

    found = tuple(walk(t, lambda n: operand_named(n, acc, extra), apply) for t in texts)
    for text, type_ in zip(texts, found, strict=True):
        if not isinstance(type_, Tensor) or type_.dims != acc.dims:
            raise VerifyError(f'epilogue "{text}" gives {type_}, the product has {acc}')
    return found


def run_epilogue(
    dims: Dims,
    texts: Sequence[str],
    acc: Any,
    acc_type: Tensor,
    extra: Sequence[Any],
    extra_types: Sequence[Any],
) -> Any:
    """Computes a fused op's results by the reference meanings of its elementwise ops."""

    def leaf(name: str) -> Any:
        return (
            operand_named(name, acc, extra),
            Value(name, placed(operand_named(name, acc_type, extra_types), WHOLE)),
        )

    def apply(name: str, args: list[Any], attrs: dict[str, Any]) -> Any:
        operands = tuple(a if isinstance(a, Literal) else a[1] for a in args)
        arrays = [a.value if isinstance(a, Literal) else a[0] for a in args]
        definition = registry.lookup(name)
        types = (o.type if isinstance(o, Value) else o for o in operands)
        (type_,) = definition.types(dims, *types, **attrs)
        result = Value(name, type_)
        op = Op(name, operands, make_attrs(attrs), (result,))
        return definition.evaluate(registry.Eval(op, dims), *arrays, **attrs), result

    results = tuple(walk(t, leaf, apply)[0] for t in texts)
    return results if len(results) > 1 else results[0]


def operand_named(name: str, acc: Any, extra: Sequence[Any]) -> Any:
    """The operand that `acc` or `c3` stands for."""
    if name == ACC:
        return acc
    if name.startswith("c") and name[1:].isdigit() and int(name[1:]) < len(extra):
        return extra[int(name[1:])]
    raise VerifyError(f'epilogue: there is no operand "{name}"')


__all__ = ["ACC", "expression", "infer_epilogue", "operand_named", "run_epilogue", "walk"]
