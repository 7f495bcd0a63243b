"""Every op of the registry: meaning, type rule, derivative, emitted form, text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moegen.backends import xla
from moegen.backends.source import Emitter, emit_function, emit_module
from moegen.errors import DerivativeError, LoweringError, VerifyError
from moegen.ir import registry
from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.ir.text import format_program
from moegen.ir.types import cotangent_type
from moegen.ir.verify import verify
from moegen.passes.differentiate import differentiate
from moegen.passes.select_kernels import KernelChoice, select_kernels
from tests.moegen.ops.cases import CASES

ROUTE_OPS = {
    *("affinity", "assign", "assign_items", "combine", "dense_route", "dispatch", "kept"),
}
"""Ops on routes: choose_format replaces them, so they have no emitted form."""


@pytest.fixture(params=registry.known_ops())
def case(request):
    """One case per registered op; an op without an entry in cases.py fails here."""
    return CASES[request.param]


def test_every_case_is_an_op():
    assert set(CASES) == set(registry.known_ops())


def assert_same(got, want, tolerance=1e-6):
    for g, w in zip(got, want, strict=True):
        assert np.shape(g) == np.shape(w)
        np.testing.assert_allclose(g, np.asarray(w), rtol=tolerance, atol=tolerance)


def test_worked_example(case):
    program = verify(case.program())
    outputs, _ = interpret(program, *case.arrays())
    assert_same(outputs.values(), case.wanted())
    for (_, value), array in zip(program.outputs, outputs.values(), strict=True):
        assert {"f32": jnp.float32, "i32": jnp.int32, "bool": jnp.bool_}[
            value.type.dtype
        ] == array.dtype


def test_type_rule_refuses(case):
    program = parse(case.text(case.refused, bad=True), "bad.moe")
    with pytest.raises(VerifyError, match=case.match) as caught:
        verify(program)
    line = 2 + len(case.setup)
    assert caught.value.what.startswith(f"{case.op}: ")
    assert caught.value.op.startswith(f"{case.op}(")
    assert (caught.value.location.file, caught.value.location.line) == ("bad.moe", line)


ANY_NUMBER = {"barrier"}
"""Ops that take any tensors, however many."""


def test_one_operand_too_many_is_refused(case):
    if case.op in ANY_NUMBER:
        return
    operands = [part for part in case.line.split(", ") if part.startswith("%")]
    attrs = case.line[len(", ".join(operands)) :].removeprefix(", ")
    extra = ", ".join(filter(None, [*operands, "%one_more, %one_more", attrs]))
    text = case.text(extra).replace(") {", ", %one_more: f32[]) {", 1)
    with pytest.raises(VerifyError, match=f"^{case.op}: "):
        verify(parse(text))


OPTIONAL = {"combine", "grouped_sum"}
"""Ops whose attributes have a default or say only how they run."""


@pytest.mark.parametrize("op", [n for n, c in CASES.items() if "=" in c.line and n not in OPTIONAL])
def test_missing_attributes_are_refused(op):
    case = CASES[op]
    operands = ", ".join(part for part in case.line.split(", ") if part.startswith(("%", "2.5")))
    with pytest.raises(VerifyError, match=f"^{op}: .*no attribute"):
        verify(parse(case.text(operands)))


def test_text_round_trip(case):
    program = case.program()
    assert parse(format_program(program)) == program


def gradients(program, arrays, cotangents):
    """Gradients by jax.vjp of the interpreted program."""
    wanted = [i for i, v in enumerate(program.inputs) if cotangent_type(v.type)]
    floats = [n for n, v in program.outputs if cotangent_type(v.type)]

    def run(*given):
        full = list(arrays)
        for i, array in zip(wanted, given, strict=True):
            full[i] = array
        outputs, _ = interpret(program, *full)
        return [outputs[n] for n in floats]

    _, pull = jax.vjp(run, *(arrays[i] for i in wanted))
    found = pull(list(cotangents))
    return {program.inputs[i].name: g for i, g in zip(wanted, found, strict=True)}


def test_derivative(case):
    program = case.program()
    if not case.derivative:
        with pytest.raises(DerivativeError, match=f"{case.op} has no derivative rule"):
            differentiate(program)
        return
    joint = verify(differentiate(program))
    rng = np.random.default_rng(0)
    for arrays in (case.arrays(), case.random_arrays(1)):
        cotangents = [
            jnp.asarray(rng.normal(size=[joint.sizes[d] for d in v.type.dims]), jnp.float32)
            for v in joint.cotangents
        ]
        _, got = interpret(joint, *arrays, *cotangents)
        want = gradients(program, arrays, cotangents)
        assert got.keys() == want.keys()
        assert_same(got.values(), want.values(), 1e-5)


ON_CPU = {
    "send_rows": KernelChoice("all_gather"),
    "return_rows": KernelChoice("all_gather"),
    "exchanged_dot": KernelChoice("pallas_tpu", (2, 128), interpret=True),
    "gathered_dot": KernelChoice("pallas_tpu", (2, 32), interpret=True),
}


def emitted(program):
    """Runs a program as the XLA backend writes it."""
    program = select_kernels(program, lambda p, op: ON_CPU.get(op.name, KernelChoice("blocks")))
    e = Emitter(program, xla.TEMPLATES, xla.KERNEL_NAMES)
    returns = "(" + "".join(f"{e.name(v)}, " for _, v in program.outputs) + ")"
    run = emit_function(
        "run", [e.name(v) for v in program.inputs], e.statements(program.ops), returns
    )
    namespace = dict(e.functions)
    exec(emit_module(e, [run], "One op.", ""), namespace)
    return on_mesh(namespace["run"], program.mesh) if program.mesh else namespace["run"]


def on_mesh(run, axes):
    """A mesh of one device: moves run, and change nothing."""
    names, sizes = zip(*axes, strict=True)
    mesh = jax.make_mesh(sizes, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))
    everywhere = jax.sharding.PartitionSpec()
    return jax.shard_map(run, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)


def test_emitted_form(case):
    if case.op in ROUTE_OPS:
        with pytest.raises(LoweringError, match="cannot be emitted"):
            emitted(case.program())
        return
    program = case.program()
    run = emitted(program)
    for arrays in (case.arrays(), case.random_arrays(2)):
        outputs, _ = interpret(program, *arrays)
        got = run(*arrays)
        nobodys = case.op in ("per_row", "grouped_dot")  # row 4 belongs to no expert
        owned = slice(0, 4) if nobodys else slice(None)
        for g, w in zip(got, outputs.values(), strict=True):
            assert g.dtype == w.dtype
            np.testing.assert_allclose(g[owned] if g.ndim else g, w[owned] if w.ndim else w, 2e-6)


def test_an_epilogue_of_a_grouped_product_reads_values_per_expert():
    """Rows of experts 0, 0 and 2, and one of none, which reads 0."""
    text = """moe @p dims(N=4, E=3, D=1, F=2) (
        %rows: f32[N, D], %w: f32[E, D, F], %sizes: i32[E], %b: f32[F, E], %bad: f32[D, E]) {
    %y: f32[N, F] = grouped_dot(%rows, %w, %sizes, %b, over="D", epilogue=("add(acc, c0)",))
    return y=%y
    }"""
    bias = jnp.asarray([[0.5, 9.0, 1.0], [0.0, 9.0, 2.0]])
    arrays = [jnp.ones((4, 1)), jnp.ones((3, 1, 2)), jnp.asarray([2, 0, 1]), bias, jnp.ones((1, 3))]
    outputs, _ = interpret(parse(text), *arrays)
    np.testing.assert_array_equal(outputs["y"], [[1.5, 1.0], [1.5, 1.0], [2.0, 3.0], [0.0, 0.0]])
    with pytest.raises(VerifyError, match=r"epilogue .* the product has f32\[N, F\]"):
        verify(parse(text.replace("%sizes, %b,", "%sizes, %bad,")))
