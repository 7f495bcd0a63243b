"""What passes refuse, in whose words, and what they leave alone."""

import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import DerivativeError, LoweringError
from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.passes.canonicalize import canonicalize
from moegen.passes.choose_format import choose_format
from moegen.passes.differentiate import differentiate
from moegen.passes.fuse import fuse
from moegen.passes.select_kernels import KernelChoice, select_kernels
from tests.moegen.programs import lowered, random_inputs, traced


def test_differentiate_twice():
    joint = lowered("slots").stages["differentiate"]
    with pytest.raises(DerivativeError, match="is differentiated already"):
        differentiate(joint)


def test_missing_derivative_names_op_and_line():
    text = "moe @p dims(S=2) (%x: f32[S]) {\n"
    text += "%y: f32[S] = gelu_grad(%x)  // mine.py:4\nreturn y=%y\n}"
    with pytest.raises(DerivativeError, match="gelu_grad has no derivative rule") as caught:
        differentiate(parse(text))
    assert str(caught.value.location) == "mine.py:4"
    assert "mg.stop_gradient" in caught.value.fix


def test_stop_gradient_shields_it():
    text = "moe @p dims(S=2) (%x: f32[S]) {\n%a: f32[S] = stop_gradient(%x)\n"
    text += "%y: f32[S] = gelu_grad(%a)\nreturn y=%a\n}"
    joint = differentiate(parse(text))
    _, gradients = interpret(joint, jnp.ones(2), jnp.ones(2))
    np.testing.assert_array_equal(gradients["x"], 0.0)


def test_unknown_format():
    with pytest.raises(LoweringError, match='format "dense" is unknown') as caught:
        choose_format(traced().program, "dense")
    assert caught.value.fix == "use one of onehot, slots, sorted"


def expert_of(body):
    @mg.expert
    def of_rows(x: mg.f32["C D"], w: mg.f32["D"]):
        return body(x, w)

    return of_rows


MIXING = {
    "sum": lambda x, w: x * w + mg.sum(x, over="C"),
    "max": lambda x, w: x * w - mg.max(x, over="C"),
    "softmax": lambda x, w: mg.softmax(x * w, over="C"),
    "cumsum": lambda x, w: mg.cumsum(x * w, over="C"),
    "dot": lambda x, w: x * mg.dot(x * w, x, over="C"),
    "call": lambda x, w: mg.call(jnp.tanh, x * w, out=mg.f32["C D"]),
}


@pytest.mark.parametrize("name", MIXING)
def test_sorted_refuses_experts_that_mix_rows(name):
    program = traced(expert=expert_of(MIXING[name])).program
    with pytest.raises(LoweringError, match="format sorted cannot hold this expert") as caught:
        choose_format(program, "sorted")
    assert caught.value.what.startswith(name)
    assert caught.value.location.function == "<lambda>"
    for stored in ("onehot", "slots"):
        inputs = random_inputs(program)
        want, _ = interpret(program, *inputs)
        got, _ = interpret(choose_format(program, stored), *inputs)
        np.testing.assert_allclose(got["y"], want["y"], rtol=1e-4, atol=1e-5)


def test_sorted_refuses_draws_per_slot():
    @mg.expert
    def dropping(x: mg.f32["C D"], key: mg.Key):
        return mg.dropout(key, x, 0.5)

    with pytest.raises(LoweringError, match="uniform makes a value per slot"):
        choose_format(traced(expert=dropping).program, "sorted")


def test_sorted_takes_from_the_experts_own_table():
    """A per-expert operand beside rows is copied to the rows, whatever op reads it."""

    @mg.expert
    def table(x: mg.f32["C D"], values: mg.f32["F"]):
        return x * mg.take(values, mg.argmax(x, over="D"), over="F")

    program = traced(expert=table).program
    inputs = random_inputs(program)
    want, _ = interpret(program, *inputs)
    got, _ = interpret(choose_format(program, "sorted", 2), *inputs)
    np.testing.assert_allclose(got["y"], want["y"], rtol=1e-5, atol=1e-6)


def test_canonicalize_keeps_what_is_not_neutral():
    text = """moe @p dims(S=2, E=3) (%x: f32[S], %y: f32[S, E], %i: i32[S]) {
    %a: f32[S] = sub(0.0, %x)
    %b: f32[S] = div(1.0, %x)
    %c: f32[S, E] = broadcast(%x, dims=("S", "E"))
    %d: f32[S] = cast(%i, dtype="f32")
    %e: f32[S, E] = sub(%y, %x)
    return a=%a, b=%b, c=%c, d=%d, e=%e
    }"""
    program = parse(text)
    assert canonicalize(program) == program


def test_fuse_keeps_forward_and_backward_apart():
    """A derivative that only the backward needs does not join a forward product."""
    program = lowered("slots").stages["fuse"]
    forward = {v.name for _, v in program.outputs}
    texts = [t for op in program.ops for t in op.attr.get("epilogue", ())]
    assert any("gelu(" in t for t in texts)
    products = [op for op in program.ops if any("gelu(" in t for t in op.attr.get("epilogue", ()))]
    assert not any("gelu_grad" in t for op in products for t in op.attr["epilogue"])
    assert forward == {v.name for _, v in lowered("slots").stages["choose_format"].outputs}


@pytest.mark.parametrize("number", ["-inf", "inf", "-1e-05", "True"])
def test_numbers_in_epilogues_read_back(number):
    condition = number == "True"
    last = f"eq(%c, {number})" if condition else f"maximum(%h, {number})"
    out = "bool" if condition else "f32"
    text = f"""moe @p dims(S=2, D=2) (%x: f32[S, D], %w: f32[D]) {{
    %h: f32[S] = dot(%x, %w, over="D")
    %c: bool[S] = gt(%h, 0.5)
    %y: {out}[S] = {last}
    return y=%y, c=%c
    }}"""
    program, inputs = parse(text), [jnp.asarray([[1.0, 2.0], [-3.0, 0.0]]), jnp.ones(2)]
    fused = fuse(program)
    assert [op.name for op in fused.ops] == ["dot"]
    want, _ = interpret(program, *inputs)
    got, _ = interpret(parse(str(_text(fused))), *inputs)
    np.testing.assert_array_equal(got["y"], want["y"])


def _text(program):
    from moegen.ir.text import format_program

    return format_program(program)


def test_select_kernels_writes_the_decision():
    program = lowered("sorted").stages["fuse"]
    chosen = select_kernels(program, lambda p, op: KernelChoice("mine", (8, 16), "tuned"))
    products = [op for op in chosen.ops if "kernel" in op.attr]
    assert {op.name for op in products} >= {"dot", "grouped_dot", "grouped_outer", "grouped_sum"}
    for op in products:
        assert op.attrs[-3:] == (("kernel", "mine"), ("tile", (8, 16)), ("source", "tuned"))
