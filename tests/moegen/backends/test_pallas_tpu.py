"""The Pallas kernels for TPUs in a whole layer: the source that is emitted, and its numbers."""

import ast
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError, ScheduleError
from moegen.routers import noisy_top_k

X = jax.random.normal(jax.random.key(0), (2, 12, 8))


@mg.expert
def gated(x: mg.f32["C D"], w1: mg.f32["D F"], b: mg.f32["F"], v: mg.f32["D F"], w2: mg.f32["F D"]):
    up = mg.dot(x, w1, over="D") + b
    return mg.dot(mg.silu(up) * mg.dot(x, v, over="D"), w2, over="F")


def layer(**schedule):
    router = noisy_top_k.bind(k=2, capacity_factor=1.0)
    return mg.compile(router, gated, mg.Schedule(format="sorted", **schedule))


@functools.cache
def params():
    return layer().init(jax.random.key(1), X, experts=4, hidden=24)


def source():
    return layer(target="tpu_v5e").lower(params(), X).source()


def test_the_kernel_is_called_with_the_authors_arithmetic_as_its_epilogue():
    text = source()
    assert text.count("= grouped_dot_tpu(") == 3 * 2 + 3  # primal, forward; backward
    assert text.count("= grouped_outer_tpu(") == 3
    assert "    epilogue=lambda acc, c0: (acc + c0," in text
    assert "epilogue=lambda acc, c0, c1, c2: (acc * c0, (acc * c1) * silu_grad(c2))," in text
    assert "    transposed=True,\n" in text
    assert "interpret=True" not in text
    assert "    tile=(24, 64, 32, 16),\n" in text


def test_the_module_has_the_kernel_and_imports_jax_and_the_standard_library():
    tree = ast.parse(source())
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}
    modules |= {str(n.module) for n in imports if isinstance(n, ast.ImportFrom)}
    assert {m.split(".")[0] for m in modules} == {"jax", "functools", "collections", "typing"}
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    assert names.index("dot_kernel") < names.index("dot_of_visits") < names.index("primal")


def value_and_grad(layer):
    def loss(params, x):
        y, _ = layer(params, x)
        return jnp.sum(y * jnp.cos(y)), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params(), X)


def test_outputs_and_gradients_are_those_of_the_other_kernels():
    got = value_and_grad(layer(target="cpu", kernel="pallas_tpu", interpret=True))
    want = value_and_grad(layer(target="cpu", kernel="runs"))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_rows_are_gathered_inside_where_asked_and_the_forward_makes_no_copy_of_them():
    router = noisy_top_k.bind(k=2, dropless=True)
    inside = {"kernel": "pallas_tpu", "gather": "inside", "target": "cpu", "interpret": True}
    one = mg.compile(router, gated, mg.Schedule(format="sorted", block=1, **inside))
    other = mg.compile(router, gated, mg.Schedule(format="sorted", kernel="runs"))
    lowered = one.lower(params(), X)
    moves = {n: [op.name for op in p.ops if op.name == "take_tokens"] for n, p in (
        ("primal", lowered.parts.primal), ("forward", lowered.parts.forward),
        ("backward", lowered.parts.backward),
    )}  # fmt: skip
    assert moves == {"primal": [], "forward": [], "backward": ["take_tokens"] * 2}
    call = "= gathered_dot_tpu(\n        x, source, w1, sizes, b.reshape(E, 1, F),"
    assert lowered.source().count(call) == 2
    for got, want in zip(*(jax.tree.leaves(value_and_grad(f)) for f in (one, other)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_values_per_expert_are_read_where_they_are():
    assert "per_row(" not in source()
    assert "w1, sizes, b.reshape(E, 1, F)," in source()
    assert "per_row(" in layer(target="tpu_v5e", kernel="ragged_dot").lower(params(), X).source()


def test_rows_are_gathered_before_unless_asked():
    assert "gathered_dot" not in source()
    with pytest.raises(LoweringError, match="runs: it gathers no rows") as caught:
        layer(target="cpu", gather="inside").lower(params(), X)
    assert "gather=" in str(caught.value.fix)


def test_it_is_for_tpus_unless_asked_to_be_interpreted():
    with pytest.raises(LoweringError, match="pallas_tpu cannot run it: it is for tpu"):
        layer(target="cpu", kernel="pallas_tpu").lower(params(), X)
    with pytest.raises(ScheduleError, match='kernel="pallas" is unknown'):
        mg.Schedule(kernel="pallas")
