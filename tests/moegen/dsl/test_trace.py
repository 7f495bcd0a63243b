"""What a trace records: names and lines of the author, dims that ride along, `mg.call`."""

import pathlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError, ShapeError, TraceError
from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.ir.text import format_program
from moegen.ir.types import Tensor
from moegen.ir.verify import verify
from moegen.passes.differentiate import differentiate
from tests.moegen.programs import X, random_inputs


@mg.router
def plain(x: mg.f32["S D"], w: mg.f32["D E"]):
    logits = mg.dot(x, w, over="D")
    gates = helper(logits)
    weight, expert = mg.top_k(gates, 1, over="E")
    route = mg.assign(expert, weight, capacity=2, priority="gate")
    return route, {"mean_gate": mg.mean(gates, over="S E")}


def helper(logits):
    shifted = logits - mg.max(logits, over="E")
    return mg.softmax(shifted, over="E")


@mg.expert
def scale(x: mg.f32["C D"], w: mg.f32["D"]):
    scaled = x * w
    return mg.tanh(scaled)


def trace(router=plain, expert=scale, x=X, **kwargs):
    return mg.compile(router, expert).trace(x, experts=3, **kwargs).program


def test_values_have_the_authors_names():
    names = [r.name for op in trace().ops for r in op.results]
    assert names == [
        *("logits", "max", "shifted", "gates", "weight", "expert", "max_1", "route"),
        *("mean_gate", "xe", "scaled", "tanh", "y"),
    ]


def test_every_op_points_at_its_line():
    lines = pathlib.Path(__file__).read_text().splitlines()
    for op in trace().ops:
        assert op.location.file == __file__
        text = lines[op.location.line - 1]
        owner = {"dispatch": "@mg.expert", "combine": "@mg.expert", "assign": "mg.assign",
                 "sub": "logits - ", "mul": "x * w"}.get(op.name, f"mg.{op.name}")  # fmt: skip
        assert owner in text or "mg.assign" in text


def test_program_name_dims_and_inputs():
    program = trace()
    assert program.name == "plain_scale"
    assert program.sizes == {"G": 2, "S": 5, "D": 3, "E": 3, "K": 1, "C": 2}
    assert [(v.name, str(v.type)) for v in program.inputs] == [
        ("x", "f32[G, S, D]"),
        ("w", "f32[D, E]"),
        ("w_1", "f32[E, D]"),
    ]
    assert verify(program) is program
    assert parse(format_program(program)) == program


def test_groups_and_experts_ride_along():
    types = {r.name: str(r.type) for op in trace().ops for r in op.results}
    assert types["gates"] == "f32[G, S, E]"
    assert types["mean_gate"] == "f32[G]"
    assert types["scaled"] == "f32[G, E, C, D]"


def test_arithmetic_of_traced_values():
    @mg.router
    def arithmetic(x: mg.f32["S D"], w: mg.f32["D E"]):
        a = mg.dot(x, w, over="D")
        b = -(1 + a) * 2 - 1.5 / (a * a + 3) + (2 - a)
        chosen = mg.where(((a > b) | (a <= 0)) & ~(a == b) & (a != 7), a, b)
        weight, expert = mg.top_k(mg.maximum(chosen, 0.25), 1, over="E")
        return mg.assign(expert, weight, capacity=2), {"chosen": mg.sum(chosen, over="S E")}

    program = trace(arithmetic)
    inputs = random_inputs(program)
    outputs, _ = interpret(program, *inputs)
    a = np.asarray(inputs[0]) @ np.asarray(inputs[1])
    b = -(1 + a) * 2 - 1.5 / (a * a + 3) + (2 - a)
    chosen = np.where((a > b) | (a <= 0), a, b)
    np.testing.assert_allclose(outputs["chosen"], chosen.sum((1, 2)), rtol=2e-5)


def test_settings_are_part_of_the_router():
    @mg.router
    def some(x: mg.f32["S D"], w: mg.f32["D E"], *, k: int = 1, twice: bool = False):
        gates = mg.dot(x, w, over="D")
        weight, expert = mg.top_k(gates * 2.0 if twice else gates, k, over="E")
        return mg.assign(expert, weight, capacity=2)

    assert trace(some.bind(k=2)).sizes["K"] == 2
    assert "mul" not in [op.name for op in trace(some).ops[:2]]
    assert "mul" in [op.name for op in trace(some.bind(twice=True)).ops[:2]]
    assert hash(some.bind(k=2)) == hash(some.bind(k=2))
    assert some.bind(k=2) == some.bind(k=2) != some


def test_a_router_can_use_another():
    @mg.router
    def around(x: mg.f32["S D"], w: mg.f32["D E"]):
        route, outputs = plain(x, w)
        return route, {"again": outputs["mean_gate"]}

    assert [n for n, _ in trace(around).outputs] == ["y", "again"]


def test_draws_are_numbered():
    @mg.router
    def noisy(x: mg.f32["S D"], w: mg.f32["D E"], key: mg.Key):
        logits = mg.dot(x, w, over="D")
        two = mg.normal(key, like=logits) + mg.uniform(key, like=logits)
        weight, expert = mg.top_k(logits + two, 1, over="E")
        return mg.assign(expert, weight, capacity=2)

    program = trace(noisy, key=jax.random.key(0))
    streams = [op.attr["stream"] for op in program.ops if "stream" in op.attr]
    assert streams == [0, 1]


def test_a_profiler_is_left_in_place():
    import sys

    def profiler(*_):
        pass

    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        trace()
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(before)


@mg.router
def comprehending(x: mg.f32["S D"], w: mg.f32["D E"]):
    gates = mg.dot(x, w, over="D")
    parts = [part for part in (gates * 2.0, gates * 3.0)]  # noqa: C416 - the loop variable
    both = parts[0] + parts[1]
    weight, expert = mg.top_k(both, 1, over="E")
    return mg.assign(expert, weight, capacity=2)


def test_loop_variables_of_comprehensions_name_nothing():
    """Python 3.11 gives a comprehension a frame of its own, later versions do not."""
    names = {r.name for op in trace(comprehending).ops for r in op.results}
    assert {"gates", "both"} <= names
    assert "part" not in names


# --- mg.call ----------------------------------------------------------------------------


def squashed(logits, w):
    """What mg.call is given: one group's [S, E] and a parameter [D, E]."""
    return jax.nn.softmax(jnp.sin(logits) + w.sum(0), axis=-1)


@mg.router
def calling(x: mg.f32["S D"], w: mg.f32["D E"]):
    logits = mg.dot(x, w, over="D")
    gates = mg.call(squashed, logits, w, out=mg.f32["S E"])
    weight, expert = mg.top_k(gates, 2, over="E")
    return mg.assign(expert, weight, capacity=4), {"gates": mg.sum(gates * gates, over="S E")}


def test_call_in_a_router():
    program = trace(calling)
    inputs = random_inputs(program)
    outputs, _ = interpret(program, *inputs)
    x, w = inputs[:2]
    want = [(squashed(x[g] @ w, w) ** 2).sum() for g in range(2)]
    np.testing.assert_allclose(outputs["gates"], want, rtol=1e-5)


def test_call_differentiates():
    program = trace(calling)
    joint = verify(differentiate(program))
    x, w, _, _, d_gates = arguments = random_inputs(joint)
    arguments[3] = jnp.zeros_like(arguments[3])  # nothing flows back from y
    _, got = interpret(joint, *arguments)

    def of_gates(x, w):
        return jax.vmap(lambda one: (squashed(one @ w, w) ** 2).sum())(x)

    d_x, d_w = jax.vjp(of_gates, x, w)[1](d_gates)
    np.testing.assert_allclose(got["x"], d_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["w"], d_w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["onehot", "slots", "sorted"])
def test_call_runs_in_every_format(format):
    layer = mg.compile(calling, scale, mg.Schedule(format=format, block=2))
    program = trace(calling)
    x, w, scale_w = random_inputs(program)
    params = {"router": {"w": w}, "expert": {"w": scale_w}}
    y, aux = layer(params, x)
    want, _ = interpret(program, x, w, scale_w)
    np.testing.assert_allclose(y, want["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["gates"], want["gates"], rtol=1e-5)


@pytest.mark.parametrize("out", [mg.f32["S D"], mg.f32["E"], mg.bf16["S E"]])
def test_call_that_returns_something_else(out):
    two_wide = jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)

    @mg.router
    def wrong(x: mg.f32["S D"], w: mg.f32["D E"]):
        gates = mg.call(jnp.tanh, mg.dot(x, w, over="D"), out=out)
        weight, expert = mg.top_k(gates, 1, over="E")
        return mg.assign(expert, weight, capacity=2)

    with pytest.raises(ShapeError, match="returns f32\\[2, 5, 3\\], declared is") as caught:
        trace(wrong, x=two_wide)
    assert caught.value.fix == "make `out=` say what the function returns"
    assert caught.value.location.function == "wrong"


def mixing(rows):
    """An expert that may look at all of its rows."""
    return rows - rows.mean(0)


@mg.expert
def opaque(x: mg.f32["C D"], w: mg.f32["D"]):
    return mg.call(mixing, x * w, out=mg.f32["C D"])


def test_call_in_an_expert_is_refused_by_the_sorted_format():
    layer = mg.compile(plain, opaque, mg.Schedule(format="sorted"))
    with pytest.raises(LoweringError, match="call is opaque: it may look at all rows") as caught:
        layer.lower(X, experts=3)
    assert caught.value.location.function == "opaque"
    assert caught.value.fix == 'use Schedule(format="slots") or "onehot", with a capacity'


def test_call_in_an_expert_runs_with_slots():
    outputs = []
    x, w, expert_w = random_inputs(trace(plain, opaque))
    for stored in ("onehot", "slots", "auto"):
        layer = mg.compile(plain, opaque, mg.Schedule(format=stored))

        def loss(w, expert_w, layer=layer):
            return (layer({"router": {"w": w}, "expert": {"w": expert_w}}, x)[0] ** 2).sum()

        outputs.append(jax.value_and_grad(loss, argnums=(0, 1))(w, expert_w))
    for other in outputs[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), outputs[0], other)


def test_compile_takes_a_router_and_an_expert():
    for pair in ((scale, plain), (plain, plain), (helper, scale)):
        with pytest.raises(TraceError, match=re.escape("is not a")):
            mg.compile(*pair)


def test_specs_print():
    assert str(mg.f32["S D"]) == "f32[S, D]"
    assert str(mg.floating["S, D"]) == "floating[S, D]"
    assert (repr(mg.f32), repr(mg.floating)) == ("moegen.f32", "moegen.floating")
    assert mg.floating[""].accepts("bf16")
    assert not mg.floating[""].accepts("i32")
    assert Tensor(mg.i32["S"].dtype, mg.i32["S"].dims) == Tensor("i32", ("S",))


def raised(x: jax.Array, *, power: int) -> jax.Array:
    return x**power


@mg.router
def by_power(x: mg.f32["S D"], w: mg.f32["D E"], *, power: object = 3):
    gates = mg.call(raised, mg.dot(x, w, over="D"), out=mg.f32["S E"], power=power)
    weight, expert = mg.top_k(gates, 1, over="E")
    return mg.assign(expert, weight, capacity=4), {"gates": gates}


def test_settings_of_a_call_reach_the_function_and_its_gradient():
    layer = mg.compile(by_power, scale, mg.Schedule(format="slots"))
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    params = layer.init(jax.random.key(1), x, experts=2)
    gates = layer(params, x)[1]["gates"]
    logits = jnp.einsum("gsd,de->gse", x, params["router"]["w"])
    np.testing.assert_allclose(gates, logits**3, rtol=1e-4, atol=1e-6)
    total = jax.grad(lambda x: layer(params, x)[1]["gates"].sum())(x)
    expected = jnp.einsum("gse,de->gsd", 3 * logits**2, params["router"]["w"])
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5)
    assert 'settings=(("power", 3),)' in layer.lower(params, x).as_text("trace")


def test_a_setting_that_is_no_number_or_string_is_refused():
    layer = mg.compile(by_power.bind(power=[3]), scale)
    with pytest.raises(TraceError, match="setting power of raised is a list") as info:
        layer.trace(jax.ShapeDtypeStruct((2, 4, 3), "float32"), experts=2)
    assert "give traced values as arguments" in str(info.value)
