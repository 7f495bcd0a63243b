"""The verifier: the rules every program keeps, checked between all passes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moegen.errors import MoegenError, VerifyError
from moegen.ir.builder import infer_types
from moegen.ir.dims import Dims
from moegen.ir.program import Literal, Op, Program, Value, dims_of
from moegen.ir.text import format_op
from moegen.ir.types import Route, Type, cotangent_type, placement_of

_LIST_DIMS = "list every dim in dims(...)"


def verify(program: Program, after: str = "") -> Program:
    """Checks a program and returns it unchanged.

    Rules: every name is defined once and before its use, with the type of its definition;
    every type names known dims; every op's results have the types its rule gives; a joint
    program has one cotangent per float output and one gradient per float input. On a mesh, axes
    are the mesh's, they divide the dims they split, and nothing is returned that owes a sum.

    Raises:
      VerifyError: with the op, the author's line, and the pass it follows.
    """
    try:
        _verify_arguments(program)
        defined = {v.name: v.type for v in program.arguments}
        dims, known = Dims(program.sizes), set(program.sizes)
        for op in program.ops:
            _verify_operands(op, defined)
            _verify_results(op, dims, known, defined)
            _verify_places(program, op.results, op)
        for name, value in program.outputs + program.gradients:
            _verify_returned(name, value, defined)
        _verify_joint(program)
    except VerifyError as error:
        error.what += f" (after {after})" if after else ""
        raise
    return program


def _verify_arguments(program: Program) -> None:
    names = [v.name for v in program.arguments]
    if len(set(names)) != len(names):
        raise VerifyError(f"@{program.name}: an argument name appears twice")
    unknown = dims_of(program.arguments) - set(program.sizes)
    if unknown:
        raise VerifyError(
            f"@{program.name}: dims {', '.join(sorted(unknown))} have no size", fix=_LIST_DIMS
        )
    wrong = [f"{n}={s}" for n, s in program.dims if s < 0]
    if wrong or len(program.sizes) != len(program.dims):
        raise VerifyError(f"@{program.name}: dims are negative or listed twice {wrong}")
    if any(s < 1 for _, s in program.mesh) or len(dict(program.mesh)) != len(program.mesh):
        raise VerifyError(f"@{program.name}: mesh axes have no devices or are listed twice")
    _verify_places(program, program.arguments)


def _verify_places(program: Program, values: Sequence[Value], op: Op | None = None) -> None:
    """Axes are the mesh's, and every device has an equal part."""
    mesh = dict(program.mesh)
    for value in values:
        place = placement_of(value.type)
        unknown = set(place.used) - set(mesh)
        uneven = [
            dim
            for dim, axes in place.splits
            if not unknown and program.sizes[dim] % math.prod(mesh[a] for a in axes)
        ]
        if not unknown and not uneven:
            continue
        wrong = f"the mesh has no axis {min(unknown)}" if unknown else f"{uneven[0]} is uneven"
        raise VerifyError(
            f"@{program.name}: {value}: {value.type}: {wrong}",
            op=format_op(op) if op else None,
            location=op.location if op else None,
            fix=f"axes are {', '.join(f'{n}={s}' for n, s in program.mesh) or 'none'}; the devices "
            "along an axis hold equal parts",
        )


def _verify_operands(op: Op, defined: dict[str, Type]) -> None:
    for operand in op.operands:
        if isinstance(operand, Literal):
            continue
        if operand.name not in defined:
            raise VerifyError(
                f"{op.name}: {operand} is not defined above", op=format_op(op), location=op.location
            )
        if defined[operand.name] != operand.type:
            raise VerifyError(
                f"{op.name}: {operand} was defined as {defined[operand.name]}, "
                f"used as {operand.type}",
                op=format_op(op),
                location=op.location,
            )


def _verify_results(op: Op, dims: Dims, known: set[str], defined: dict[str, Type]) -> None:
    try:
        types = infer_types(dims, op.name, op.operands, op.attrs, op.location)
    except VerifyError:
        raise
    except MoegenError as error:
        raise VerifyError(error.what, fix=error.fix, op=error.op, location=error.location) from None
    declared = tuple(r.type for r in op.results)
    if types != declared:
        raise VerifyError(
            f"{op.name}: results are declared {_types(declared)}, the op gives {_types(types)}",
            op=format_op(op),
            location=op.location,
        )
    if unknown := dims_of(op.results) - known:
        raise VerifyError(
            f"{op.name}: dims {', '.join(sorted(unknown))} have no size",
            op=format_op(op),
            location=op.location,
            fix=_LIST_DIMS,
        )
    for result in op.results:
        if result.name in defined:
            raise VerifyError(
                f"{op.name}: {result} is defined twice", op=format_op(op), location=op.location
            )
        defined[result.name] = result.type


def _verify_returned(name: str, value: Value, defined: dict[str, Type]) -> None:
    if defined.get(value.name) != value.type:
        raise VerifyError(f"return {name}={value}: not defined with type {value.type}")
    if isinstance(value.type, Route):
        raise VerifyError(f"return {name}={value}: a route is not an array and cannot be returned")
    if owed := placement_of(value.type).partial:
        raise VerifyError(
            f"return {name}={value}: a sum over {', '.join(owed)} is still owed",
            fix="psum it, or reduce_scatter it, before it is returned",
        )


def _verify_joint(program: Program) -> None:
    for pairs in (program.outputs, program.gradients):
        if len(dict(pairs)) != len(pairs):
            raise VerifyError(f"@{program.name}: a name is returned twice")
    if not program.cotangents and not program.gradients:
        return
    owed = [t for _, v in program.outputs if (t := cotangent_type(v.type))]
    given = [v.type for v in program.cotangents]
    if owed != given:
        raise VerifyError(
            f"@{program.name}: outputs need cotangents {_types(owed)}, given are {_types(given)}"
        )
    wanted = {v.name: v.type for v in program.inputs if cotangent_type(v.type)}
    got = {n: v.type for n, v in program.gradients}
    if wanted != got:
        raise VerifyError(
            f"@{program.name}: gradients must be given for {sorted(wanted)} with the inputs' "
            f"types, they are given for {sorted(got)}"
        )


def _types(types: Sequence[Type]) -> str:
    return "(" + ", ".join(str(t) for t in types) + ")"
