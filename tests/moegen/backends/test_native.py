"""The custom call for CPUs in a whole layer: its numbers, and what is said where it cannot be."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError
from moegen.experts import mlp
from moegen.kernels.grouped_dot import native
from moegen.routers import noisy_top_k
from tests.moegen.layer_cases import CORNERS
from tests.moegen.test_oracle import check, expected

compiler = pytest.mark.skipif(
    shutil.which("c++") is None, reason="no C++ compiler to make the call with"
)


def gradients(x, **schedule):
    router = noisy_top_k.bind(k=2, noise_std=0.0, dropless=True)
    layer = mg.compile(router, mlp, mg.Schedule(format="sorted", **schedule))
    params = layer.init(jax.random.key(1), x, experts=3, hidden=40)

    def loss(params, x):
        return jnp.sum(jnp.cos(layer(params, x)[0].astype(jnp.float32)))

    return layer.lower(params, x), jax.value_and_grad(loss, argnums=(0, 1))(params, x)


@compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_a_layer_and_its_gradients_are_those_of_runs(dtype, tolerance):
    x = jax.random.normal(jax.random.key(0), (2, 24, 20), dtype)
    lowered, found = gradients(x, kernel="native")
    _, expected = gradients(x, kernel="runs")
    source = lowered.source()
    for name in ("grouped_dot_native", "grouped_outer_native"):
        assert f"from moegen.kernels.grouped_dot.native import {name}\n" in source
    assert source.count("= grouped_outer_native(") == 2
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(v, np.float32) for v in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()))


def loss_of(layer):
    return lambda params, x: jnp.sum(jnp.cos(layer(params, x)[0]))


def agree(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.fixture(scope="module")
def wide():
    """A router, tokens and parameters for which `auto` takes the call, and what it should give."""
    router = noisy_top_k.bind(k=2, noise_std=0.0, dropless=True)
    x = jax.random.normal(jax.random.key(0), (2, 128, 64))
    masks = mg.compile(router, mlp, mg.Schedule(format="onehot"))
    params = masks.init(jax.random.key(1), x, experts=8, hidden=128)
    return router, params, x, jax.jit(jax.value_and_grad(loss_of(masks), (0, 1)))(params, x)


def test_auto_under_jit_grad_remat_and_with_little_kept(custom_call, wide):
    router, params, x, expected = wide
    layer = mg.compile(router, mlp)
    assert layer.lower(params, x).choice.kernel == "native"
    gradients = jax.jit(jax.value_and_grad(loss_of(layer), (0, 1)))
    found = gradients(params, x)
    agree(found, expected)
    again = gradients(params, x)
    jax.tree.map(np.testing.assert_array_equal, again, found)  # a resumed run relies on it
    least = mg.compile(router, mlp, mg.Schedule(save="least"))
    assert least.lower(params, x).choice.kernel == "native"
    for same in (least, jax.checkpoint(layer)):
        agree(jax.jit(jax.value_and_grad(loss_of(same), (0, 1)))(params, x), expected)


def test_auto_under_vmap(custom_call, wide):
    router, params, x, _ = wide
    found, expected = (
        jax.jit(jax.vmap(jax.grad(loss_of(mg.compile(router, mlp, schedule))), (None, 0)))(
            params, x
        )
        for schedule in (mg.Schedule(), mg.Schedule(format="slots"))
    )
    agree(found, expected)


def test_a_program_that_leaves_the_machine_does_without(custom_call, wide):
    router, params, x, _ = wide
    layer = mg.compile(router, mlp, mg.Schedule(target="cpu"))
    exported = jax.export.export(jax.jit(loss_of(layer)), platforms=("cpu", "tpu"))(params, x)
    assert "custom_call" not in exported.mlir_module()
    with pytest.raises(ValueError, match="custom_call @moegen_grouped_dot"):
        jax.export.export(jax.jit(loss_of(mg.compile(router, mlp))))(params, x)


@pytest.mark.parametrize("name", ["empty_experts_dropless", "tokens_without_any_slot"])
def test_the_layer_of_the_oracle(custom_call, name):
    case = CORNERS[name]
    layer = mg.compile(
        case.layer("sorted").router, mlp, mg.Schedule(format="sorted", kernel="native")
    )
    y, aux = layer(case.params, case.x, **case.inputs)
    check({"y": y, **aux}, expected(case))


@compiler
def test_sizes_that_do_not_fit_the_rows_are_an_error():
    weights, sizes = jnp.zeros((2, 4, 4)), jnp.asarray([3, 2], jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no more in all than there are rows"):
        native.grouped_dot_native(jnp.zeros((4, 4)), weights, sizes).block_until_ready()


def test_what_it_cannot_run_is_refused_with_the_reason():
    x = jax.random.normal(jax.random.key(0), (1, 8, 4))
    with pytest.raises(LoweringError, match="native cannot run it: it is for cpu, the target is"):
        gradients(x, kernel="native", target="tpu_v5e")
    with pytest.raises(LoweringError, match=r"native cannot run it: .* f16, it takes f32 or bf16"):
        gradients(x.astype(jnp.float16), kernel="native")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-compiler", "it needs a C++ compiler"),
        ("false", "does not compile here: no reason"),
    ],
)
def test_without_a_compiler_that_takes_it_there_is_a_reason(tmp_path, monkeypatch, command, reason):
    monkeypatch.setenv("CXX", command)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert reason in native.obstacle.__wrapped__()
    assert not list(tmp_path.rglob("*.so"))


@compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_weight_gradient_of_more_rows_than_are_packed_at_once(dtype):
    rng, sizes = np.random.default_rng(0), [2300, 0, 5]
    a, b = (jnp.asarray(rng.normal(size=(2310, n)), dtype) for n in (6, 9))
    found = native.grouped_outer_native(a, b, jnp.asarray(sizes, jnp.int32))
    wide = [np.asarray(v, np.float64) for v in (a, b)]
    for e, mine in enumerate([slice(0, 2300), slice(0, 0), slice(2300, 2305)]):
        expected = wide[0][mine].T @ wide[1][mine]
        scale = max(1.0, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(
            np.asarray(found[e], np.float64), expected, atol=4e-3 * scale, rtol=4e-3
        )
