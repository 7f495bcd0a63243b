"""The table of ops. An op keeps its type rule, its meaning and its derivative together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from moegen.errors import DerivativeError, ShapeError, VerifyError, did_you_mean
from moegen.ir.dims import Dims
from moegen.ir.locality import Locality, dims_of, locality, place_results
from moegen.ir.placement import WHOLE
from moegen.ir.program import Literal, Op
from moegen.ir.types import Type, placed, placement_of

if TYPE_CHECKING:
    from moegen.ir.builder import Builder


@dataclass(frozen=True, slots=True)
class Eval:
    """What a meaning may look at besides its arrays: the op's types and the dim sizes."""

    op: Op
    sizes: Dims


class OpDef:
    """One kind of op. Subclass it in `moegen/ops`, set `name`, and register it.

    `infer(dims, *operand types, **attrs)` gives the result types or raises a MoegenError.
    `evaluate(env, *arrays, **attrs)` is the reference meaning in jax.numpy.
    `locality(operand types, attrs)` says what devices of a mesh can do alone.
    `derive(b, op, *cotangents)` emits the adjoint and returns one value or None per operand;
    a cotangent is None where nothing flows back into that result.
    `arity` is the least and the most number of operands (None: no bound).
    `attributes` are the names of all attributes it may have.
    `elementwise` marks ops that act on each element alone, which any kernel can absorb.
    `opaque` marks ops whose inside is not known, `moves` those that say where their results are.
    """

    name: str = ""
    arity: tuple[int, int | None] = (1, 1)
    attributes: tuple[str, ...] = ()
    elementwise: bool = False
    opaque: bool = False
    moves: bool = False

    def types(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        """Checks the number of operands and the attributes' names, and runs the type rule."""
        least, most = self.arity
        if len(operands) < least or (most is not None and len(operands) > most):
            bound = str(least) if least == most else f"{least} to {most}" if most else f"{least}+"
            raise ShapeError(f"takes {bound} operand(s), got {len(operands)}")
        for name in attrs:
            if name not in self.attributes:
                raise VerifyError(
                    f"has no attribute {name}{did_you_mean(name, self.attributes)}",
                    fix=f"attributes are {', '.join(self.attributes) or 'none'}",
                )
        if not self.moves and "placed" not in attrs and not any(placement_of(o) for o in operands):
            return self.infer(dims, *operands, **attrs)
        bare = tuple(o if isinstance(o, Literal) else placed(o, WHOLE) for o in operands)
        results = self.infer(dims, *bare, **{n: a for n, a in attrs.items() if n != "placed"})
        return self.place(operands, results, attrs)

    def place(
        self, operands: Sequence[Type | Literal], results: Sequence[Type], attrs: Mapping[str, Any]
    ) -> tuple[Type, ...]:
        """Adds to the result types where on a mesh they are; only ops that move values differ."""
        return place_results(self.locality(operands, attrs), operands, results, attrs)

    def locality(self, operands: Sequence[Type | Literal], attrs: Mapping[str, Any]) -> Locality:
        """What each device can do alone; unless an op knows better, nothing."""
        return locality(whole=[dim for operand in operands for dim in dims_of(operand)])

    def infer(self, dims: Dims, /, *operands: Type | Literal, **attrs: Any) -> tuple[Type, ...]:
        """Returns the result types of the op."""
        raise NotImplementedError(self.name)

    def evaluate(self, env: Eval, /, *arrays: Any, **attrs: Any) -> Any:
        """Returns the result array, or a tuple of them."""
        raise NotImplementedError(self.name)

    def derive(self, b: Builder, op: Op, *cotangents: Any) -> tuple[Any, ...]:
        """Returns the cotangent of each operand; None where there is none."""
        raise DerivativeError(
            f"{self.name} has no derivative rule",
            fix="wrap its input in mg.stop_gradient, or use mg.call for a differentiable function",
        )


_OPS: dict[str, OpDef] = {}
D = TypeVar("D", bound=type[OpDef])


def register(definition: D) -> D:
    """Class decorator: adds one instance of the op to the table."""
    add(definition())
    return definition


def add(definition: OpDef) -> None:
    """Adds an op to the table; a name can be taken once."""
    if definition.name in _OPS:
        raise VerifyError(f"op {definition.name} is registered twice")
    _OPS[definition.name] = definition


def lookup(name: str) -> OpDef:
    """Returns the op of that name."""
    if name not in _OPS:
        raise VerifyError(f"no op {name}{did_you_mean(name, _OPS)}")
    return _OPS[name]


def known_ops() -> tuple[str, ...]:
    """Returns the names of all registered ops, sorted."""
    return tuple(sorted(_OPS))


Derivative = Callable[..., Any]
