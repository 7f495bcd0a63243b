"""Passes keep the meaning: the interpreter says the same before and after each of them."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moegen as mg
from moegen.ir.interpret import interpret
from moegen.ir.types import cotangent_type, value_bytes
from moegen.ir.verify import verify
from moegen.passes.canonicalize import canonicalize
from moegen.passes.choose_format import choose_format
from moegen.passes.differentiate import differentiate
from moegen.passes.fuse import fuse
from moegen.passes.fuse_copies import fuse_copies
from moegen.passes.fuse_gathers import fuse_gathers
from moegen.passes.partition import partition
from moegen.passes.pipeline import STAGES, Plan, run_pipeline
from moegen.passes.reassociate import reassociate
from moegen.passes.rematerialize import rematerialize
from moegen.passes.select_kernels import KernelChoice
from moegen.routers import noisy_top_k
from tests.moegen.programs import lowered, random_inputs

STEPS = [
    *("relu", "gelu", "silu", "tanh", "sigmoid", "softplus", "square", "abs", "normal_cdf"),
    *("+b", "*b", "1-", "*0.5", "max b", "where", "dot", "softmax", "mean", "cumsum", "-inf"),
]


def make_expert(steps):
    """An expert that applies the steps in order; h keeps its dims [C, D] throughout."""

    @mg.expert
    def random_expert(x: mg.f32["C D"], w: mg.f32["D F"], v: mg.f32["F D"], b: mg.f32["D"]):
        h = x + mg.dot(mg.dot(x, w, over="D"), v, over="F") * b
        for step in steps:
            h = apply(step, h, w, v, b)
        return h

    return random_expert


def apply(step, h, w, v, b):
    forms = {
        "+b": lambda: h + b,
        "*b": lambda: b * h,
        "1-": lambda: 1.0 - h,
        "*0.5": lambda: h * 0.5 / 1.0 + 0.0,
        "max b": lambda: mg.maximum(h, b),
        "where": lambda: mg.where(h > b, h, mg.stop_gradient(h) * 0.1),
        "dot": lambda: mg.dot(mg.tanh(mg.dot(h, w, over="D")), v, over="F"),
        "softmax": lambda: mg.softmax(h, over="D"),
        "mean": lambda: h - mg.mean(h, over="D"),
        "cumsum": lambda: mg.cumsum(h, over="D"),
        "-inf": lambda: mg.maximum(mg.where(h > 0.0, h, float("-inf")), -1.0),
    }
    return forms[step]() if step in forms else getattr(mg, step)(h)


@st.composite
def layers(draw):
    """Noisy top-k with random settings and a random expert, at small sizes."""
    # A handful of shapes: eager JAX compiles every op anew for each of them.
    experts = draw(st.sampled_from([1, 3]))
    capacity = draw(st.sampled_from([None, 1, 3]))
    router = noisy_top_k.bind(
        k=draw(st.sampled_from([1, min(2, experts)])),
        batch_priority=draw(st.booleans()),
        capacity=capacity,
        dropless=capacity is None,
        importance_loss_weight=0.3,
        load_loss_weight=draw(st.sampled_from([0.0, 0.2])),
    )
    expert = make_expert(draw(st.lists(st.sampled_from(STEPS), max_size=4)))
    x = jax.ShapeDtypeStruct((*draw(st.sampled_from([(1, 2), (2, 5)])), 3), jnp.float32)
    key = jax.random.key(0) if draw(st.booleans()) else None
    layer = mg.compile(router, expert)
    return layer.trace(x, key=key, experts=experts, hidden=2).program


def assert_same(got, want, tolerance=2e-5):
    for one, other in zip(got, want, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            got_, want_ = np.asarray(one[name]), np.asarray(other[name])
            limit = tolerance * (1 + np.max(np.abs(want_), initial=0))
            np.testing.assert_allclose(got_, want_, rtol=0, atol=limit, err_msg=name)


def always(program, op):
    """What the runtime says of a kernel that can do everything."""
    return True


@settings(max_examples=settings.default.max_examples // 3)
@given(layers(), st.sampled_from([1, 2]))
def test_every_pass_keeps_the_meaning(program, block):
    inputs = random_inputs(program)
    outputs, _ = interpret(program, *inputs)
    clean = verify(canonicalize(program))
    assert_same([interpret(clean, *inputs)[0]], [outputs], 0)

    joint = verify(canonicalize(differentiate(clean)))
    arguments = random_inputs(joint)
    want = interpret(joint, *arguments)
    assert_same([want[0]], [outputs])
    assert_same([want[1]], [gradients(program, arguments)])
    for stored in ("onehot", "slots", "sorted"):
        chosen = verify(canonicalize(choose_format(joint, stored, block)), stored)
        assert_same(interpret(chosen, *arguments), want)
        fused = verify(fuse_copies(fuse_gathers(fuse(chosen), always), always), "fuse")
        assert_same(interpret(fused, *arguments), want)


@settings(max_examples=settings.default.max_examples // 12)
@given(layers(), st.sampled_from(["slots", "sorted"]))
def test_saving_keeps_the_meaning(program, stored):
    joint = canonicalize(differentiate(canonicalize(program)))
    arguments = random_inputs(joint)
    want = interpret(joint, *arguments)
    moved = verify(reassociate(joint, "least"))
    assert_same(interpret(moved, *arguments), want)
    chosen = canonicalize(choose_format(moved, stored, 2))
    kept = verify(rematerialize(chosen, "least"))
    assert_same(interpret(fuse(kept), *arguments), want)
    assert bytes_kept(kept) <= bytes_kept(chosen)


def bytes_kept(program):
    return sum(value_bytes(v.type, program.sizes) for v in partition(program).residuals)


def gradients(program, arguments):
    """By jax.vjp of the interpreted trace."""
    wanted = [i for i, v in enumerate(program.inputs) if cotangent_type(v.type)]
    inputs, cotangents = arguments[: len(program.inputs)], arguments[len(program.inputs) :]
    floats = [n for n, v in program.outputs if cotangent_type(v.type)]

    def run(*given):
        full = list(inputs)
        for i, array in zip(wanted, given, strict=True):
            full[i] = array
        outputs, _ = interpret(program, *full)
        return [outputs[n] for n in floats]

    pull = jax.vjp(run, *(inputs[i] for i in wanted))[1]
    found = pull(list(cotangents))
    return {program.inputs[i].name: g for i, g in zip(wanted, found, strict=True)}


@pytest.mark.parametrize(
    "format, save", [("onehot", "all"), ("slots", "all"), ("sorted", "all"), ("sorted", "least")]
)
def test_stages_and_parts_of_the_pipeline_agree(format, save):
    stages, parts = lowered(format, save).stages, lowered(format, save).parts
    joint = stages["differentiate"]
    arguments = random_inputs(joint)
    want = interpret(joint, *arguments)
    distinct = {id(p): p for p in itertools.islice(stages.values(), 3, None)}
    for program in distinct.values():
        assert_same(interpret(program, *arguments), want)
    inputs = arguments[: len(joint.inputs)]
    assert_same([interpret(parts.primal, *inputs)[0]], [want[0]])
    returned = tuple((str(i), v) for i, (_, v) in enumerate(parts.forward.outputs))
    forward = list(interpret(parts.forward.with_(outputs=returned), *inputs)[0].values())
    assert_same([dict(zip(want[0], forward, strict=False))], [want[0]])
    residuals = forward[len(want[0]) :]
    backward = interpret(parts.backward, *residuals, *arguments[len(joint.inputs) :])
    assert_same([backward[1]], [want[1]])


def test_residuals_are_what_the_backward_reads():
    parts = partition(lowered("slots").program)
    read = {v.name for op in parts.backward.ops for v in op.inputs}
    assert {v.name for v in parts.residuals} <= read
    assert parts.backward.inputs == parts.residuals
    primal = {op.name for op in parts.primal.ops}
    assert not primal & {"gelu_grad", "match_slots"}


# --- the pipeline -----------------------------------------------------------------------

PLAN = Plan(
    lambda program: None,
    lambda program: ("slots", 1),
    lambda program, op: KernelChoice("xla"),
    lambda program, ops: True,
)


def test_stages_come_in_order():
    stages = run_pipeline(lowered("slots").stages["trace"], PLAN)
    assert tuple(stages) == STAGES
    assert stages["shard"] is stages["differentiate"]
    assert stages["reassociate"] is stages["shard"]
    assert stages["rematerialize"] is stages["choose_format"]


@pytest.mark.parametrize("name", [n for n in STAGES if n not in ("trace", "differentiate")])
def test_the_verifier_runs_after_every_pass(name, monkeypatch):
    """A pass that breaks a program is named."""
    from moegen.errors import VerifyError
    from moegen.passes import pipeline

    run = getattr(pipeline, name)
    calls = []

    def broken(program, *rest):
        calls.append(program)
        done = run(program, *rest)
        first_joint = name == "canonicalize" and len(calls) > 1
        return done if first_joint else done.with_(outputs=(*done.outputs, *done.outputs))

    monkeypatch.setattr(pipeline, name, broken)
    with pytest.raises(VerifyError, match=rf"a name is returned twice \(after {name}\)"):
        run_pipeline(lowered("slots").stages["trace"], replace(PLAN, tokens=lambda program: True))


def test_the_verifier_runs_on_derivatives(monkeypatch):
    from moegen.errors import VerifyError
    from moegen.passes import pipeline

    monkeypatch.setattr(
        pipeline, "differentiate", lambda p: (d := differentiate(p)).with_(
            gradients=d.gradients[:-1]
        )
    )  # fmt: skip
    with pytest.raises(VerifyError, match=r"gradients must be given .* \(after differentiate\)"):
        run_pipeline(lowered("slots").stages["trace"], PLAN)
