"""What is checked of each random layer. A failure says which stage, format and value.

Tolerances are relative to the largest magnitude of an array, plus the same again absolutely:
values are at most 40 by construction, and no instruction is ill-conditioned (see `pool.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moegen as mg
from moegen.errors import LoweringError
from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.ir.program import Program
from moegen.ir.text import format_program
from moegen.ir.types import Tensor, cotangent_type
from moegen.passes.choose_format import FORMATS
from moegen.runtime.stages import Lowered, Traced
from tests.moegen.random import float64
from tests.moegen.random.layers import Case, draw_arrays

TOLERANCE = 2e-5
Arrays = Mapping[str, Any]


def close(got: Arrays, want: Arrays, what: str, tolerance: float = TOLERANCE) -> None:
    """Names, shapes and elements agree."""
    assert got.keys() == want.keys(), what
    for name, wanted in want.items():
        a, b = np.asarray(got[name], np.float64), np.asarray(wanted, np.float64)
        assert a.shape == b.shape, f"{what}: {name} has shape {a.shape}, not {b.shape}"
        limit = tolerance * (1 + np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=f"{what}: {name}")


def check_text(programs: Mapping[str, Program]) -> None:
    """Every stage prints to a text that parses back to it."""
    for stage, program in programs.items():
        text = format_program(program)
        assert parse(text) == program, f"after {stage}, the text is not the program:\n{text}"


def all_values(program: Program, arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    """Every tensor of a program by name, from the interpreter."""
    made = [r for op in program.ops for r in op.results if isinstance(r.type, Tensor)]
    probe = program.with_(outputs=tuple((v.name, v) for v in made), gradients=())
    outputs, _ = interpret(probe, *arrays)
    given = zip(program.arguments, arrays, strict=True)
    named = {v.name: a for v, a in given if isinstance(v.type, Tensor)}
    return {n: np.asarray(a) for n, a in (named | outputs).items()}


def check_float64(program: Program, arrays: Sequence[Any]) -> dict[str, np.ndarray]:
    """Every value of the trace is float64's; returns the values.

    Raises:
      Unclear: if a choice hangs on rounding.
    """
    seen = all_values(program, arrays)
    given = {v.name: a for v, a in zip(program.inputs, arrays, strict=True)}
    want = float64.evaluate(program, given, seen)
    for op in program.ops:
        names = [r.name for r in op.results if r.name in want]
        close({n: seen[n] for n in names}, {n: want[n] for n in names}, f"float64, {op.name}")
    return seen


def reference_gradients(program: Program, arrays: Sequence[Any]) -> dict[str, Any]:
    """Gradients by jax.vjp of the interpreted trace; arrays are inputs, then cotangents."""
    inputs, cotangents = list(arrays[: len(program.inputs)]), arrays[len(program.inputs) :]
    wanted = [i for i, v in enumerate(program.inputs) if cotangent_type(v.type)]
    floats = [n for n, v in program.outputs if cotangent_type(v.type)]

    def run(*given: Any) -> list[Any]:
        full = list(inputs)
        for i, array in zip(wanted, given, strict=True):
            full[i] = array
        outputs, _ = interpret(program, *full)
        return [outputs[n] for n in floats]

    _, pull = jax.vjp(run, *(inputs[i] for i in wanted))
    grads = pull(list(cotangents))
    return {program.inputs[i].name: g for i, g in zip(wanted, grads, strict=True)}


def emitted(lowered: Lowered, arrays: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and gradients of the emitted source, run line by line."""
    program, compiled = lowered.program, lowered.compile()
    inputs, cotangents = arrays[: len(program.inputs)], iter(arrays[len(program.inputs) :])
    primal = compiled.function(*inputs)
    wanted = [i for i, v in enumerate(program.inputs) if cotangent_type(v.type)]

    def run(*given: Any) -> tuple[Any, ...]:
        full = list(inputs)
        for i, array in zip(wanted, given, strict=True):
            full[i] = array
        return compiled.function(*full)

    forward, pull = jax.vjp(run, *(inputs[i] for i in wanted))
    given_back = tuple(
        next(cotangents) if cotangent_type(v.type) else np.zeros(jnp.shape(a), jax.dtypes.float0)
        for (_, v), a in zip(program.outputs, forward, strict=True)
    )
    grads = pull(given_back)
    for (name, value), a, b in zip(program.outputs, primal, forward, strict=True):
        assert (
            a.dtype == b.dtype == {"f32": "float32", "i32": "int32"}.get(value.type.dtype, "bool")
        )
        close({name: b}, {name: a}, "forward and primal", 0.0)
    outputs = dict(zip(compiled.outputs, primal, strict=True))
    return outputs, {program.inputs[i].name: g for i, g in zip(wanted, grads, strict=True)}


def impossible(program: Program, form: str) -> bool:
    """Whether a format cannot hold a forward program, by what the formats are."""
    makers = {op.name for op in program.ops}
    if form == "onehot":
        return False
    if "dense_route" in makers:
        return True
    if form == "slots":
        return False
    return "assign_items" in makers or any(map(mixes_rows, program.ops))


def mixes_rows(op: Any) -> bool:
    """Whether an op of the forward looks at rows of an expert as a whole, or draws for slots."""
    rows = {"G", "E", "C"}
    on_rows = any(rows <= set(getattr(v.type, "dims", ())) for v in (*op.inputs, *op.results))
    if not on_rows or op.name in ("assign", "dispatch", "combine", "kept"):
        return False
    over = op.attr.get("over", ())
    reduced = {over} if isinstance(over, str) else set(over)
    return bool(reduced & rows) or op.name in ("call", "normal", "uniform")


def check_formats(case: Case, clean: Program, arrays: Sequence[Any], want: Any) -> list[str]:
    """Each format agrees with the interpreter or is refused; returns those that agree."""
    held = []
    for form in FORMATS:
        schedule = mg.Schedule(format=form, block=case.block, target=case.target, save=case.save)
        traced = Traced(case.layer, schedule)
        if impossible(clean, form):
            error = refusal(traced)
            assert error is not None, f"{form} should be refused"
            assert error.fix, f"{form}: no fix in {error}"
            assert error.location, f"{form}: no line in {error}"
        else:
            check_lowered(traced.lower(), arrays, want, form)
            held.append(form)
    return held


def refusal(traced: Traced) -> LoweringError | None:
    """How lowering is refused, if it is."""
    try:
        traced.lower()
    except LoweringError as error:
        return error
    return None


def check_lowered(lowered: Lowered, arrays: Sequence[Any], want: Any, form: str) -> None:
    outputs, gradients = want
    parts = lowered.parts
    further = {"primal": parts.primal, "forward": parts.forward, "backward": parts.backward}
    check_text({**lowered.stages, **further})
    saving = ("reassociate", "rematerialize") if lowered.schedule.save == "least" else ()
    for stage in (*saving, "choose_format", "fuse", "select_kernels"):
        got = interpret(lowered.stages[stage], *arrays)
        close(got[0], outputs, f"{form}, interpreted after {stage}")
        close(got[1], gradients, f"{form}, gradients interpreted after {stage}")
    got = emitted(lowered, arrays)
    close(got[0], outputs, f"{form}, emitted")
    close(got[1], gradients, f"{form}, gradients emitted")


def check_layer(case: Case) -> list[str]:
    """All checks; returns the formats that hold the layer.

    Raises:
      Unclear: if a choice hangs on rounding.
    """
    program, arrays = case.program, case.arrays
    seen = check_float64(program, arrays)
    outputs = {n: seen[v.name] for n, v in program.outputs}
    stages = Traced(case.layer, mg.Schedule(format="onehot", target="cpu")).lower().stages
    clean, joint = stages["canonicalize"], stages["differentiate"]
    close(interpret(clean, *arrays)[0], outputs, "canonicalize", 0.0)

    full = (*arrays, *draw_arrays(joint, case.seed)[len(arrays) :])
    want = interpret(joint, *full)
    close(want[0], outputs, "differentiate")
    close(want[1], reference_gradients(program, full), "the derived and JAX's gradients")
    return check_formats(case, clean, full, want)
