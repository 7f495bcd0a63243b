"""Experts in 8 bits: their codes, their layer on every kernel, what is emitted and refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.dsl.quantized import quantize
from moegen.errors import DtypeError, LoweringError, TraceError
from moegen.experts import gated, mlp
from moegen.routers import noisy_top_k

X = jax.random.normal(jax.random.key(0), (2, 12, 8))
ROUTER = noisy_top_k.bind(k=2, dropless=True)
SCHEDULES = [
    {"format": "sorted"},
    {"format": "slots"},
    {"format": "onehot"},
    {"format": "sorted", "kernel": "blocks"},
    {"format": "sorted", "kernel": "ragged_dot"},
    {"format": "sorted", "kernel": "pallas_tpu", "interpret": True},
]


@functools.cache
def params(expert):
    made = mg.compile(ROUTER, expert).init(jax.random.key(1), X, experts=4, hidden=24)
    draw = jax.random.normal(jax.random.key(2), (4, 24))
    return {**made, "expert": {n: draw[:, : v.shape[1]] if v.ndim == 2 else v
                               for n, v in made["expert"].items()}}  # fmt: skip


def in_codes(expert, dtype):
    """The parameters in 8 bits, and what they stand for."""
    given = params(expert)
    codes = mg.quantized(expert, dtype).quantize(given["expert"])
    wide = {
        n: codes[n].astype(jnp.float32) * codes[f"{n}_scale"][:, None] if v.ndim == 3 else v
        for n, v in given["expert"].items()
    }
    return {**given, "expert": codes}, {**given, "expert": wide}


@pytest.mark.parametrize("dtype, steps", [("i8", 127), ("f8e4m3", 14)])
def test_a_code_is_the_nearest_and_the_largest_of_a_column_is_kept(dtype, steps):
    w = params(gated)["expert"]["w_up"].at[0, :, 0].set(0.0)
    codes, scale = quantize(w, dtype)
    assert (codes.shape, scale.shape) == (w.shape, (4, 24))
    error = np.abs(codes.astype(jnp.float32) * scale[:, None] - w)
    most = np.abs(w).max(axis=1)
    assert np.all(error <= most[:, None] * 0.5001 / steps)
    at = np.argmax(np.abs(w), axis=1)[:, None]
    assert np.take_along_axis(error, at, axis=1).max() < 1e-6
    assert scale[0, 0] == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "-".join(map(str, s.values())))
def test_a_layer_is_that_of_the_weights_its_codes_stand_for(schedule):
    dtype = "f8e4m3" if "kernel" in schedule else "i8"
    narrow, wide = in_codes(gated, dtype)
    layer = mg.compile(ROUTER, mg.quantized(gated, dtype), mg.Schedule(**schedule))
    got, _ = layer(narrow, X)
    want, _ = mg.compile(ROUTER, gated, mg.Schedule(format="sorted"))(wide, X)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_gradients_reach_tokens_scales_and_biases_and_no_codes():
    narrow, _ = in_codes(mlp, "i8")
    layer = mg.compile(ROUTER, mg.quantized(mlp), mg.Schedule(format="sorted"))
    plain = mg.compile(ROUTER, mlp, mg.Schedule(format="sorted"))
    codes = {n: v for n, v in narrow["expert"].items() if v.dtype == jnp.int8}
    floats = {n: v for n, v in narrow["expert"].items() if n not in codes}

    def narrow_loss(floats, x):
        return jnp.sum(layer({**narrow, "expert": {**floats, **codes}}, x)[0] ** 2)

    def wide_loss(floats, x):
        wide = {n: c.astype(jnp.float32) * floats[f"{n}_scale"][:, None] for n, c in codes.items()}
        rest = {n: v for n, v in floats.items() if not n.endswith("_scale")}
        return jnp.sum(plain({**narrow, "expert": {**rest, **wide}}, x)[0] ** 2)

    got, want = (jax.jit(jax.grad(f, argnums=(0, 1)))(floats, X) for f in (narrow_loss, wide_loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
    with pytest.raises(TypeError, match="int8"):
        jax.grad(lambda p: layer(p, X)[0].sum())(narrow)


def test_a_gradient_by_codes_that_are_floats_is_refused_and_by_the_rest_is_not():
    """JAX would take f8e4m3 for numbers, and answer 0."""
    narrow, _ = in_codes(mlp, "f8e4m3")
    layer = mg.compile(ROUTER, mg.quantized(mlp, "f8e4m3"), mg.Schedule(format="sorted"))

    def loss(params, x):
        return jnp.sum(layer(params, x)[0] ** 2)

    def stopped(params, x):
        fixed = {n: jax.lax.stop_gradient(v) if v.dtype == jnp.float8_e4m3fn else v
                 for n, v in params["expert"].items()}  # fmt: skip
        return loss({**params, "expert": fixed}, x)

    with pytest.raises(DtypeError, match="w1 is differentiated by") as caught:
        jax.jit(jax.grad(loss))(narrow, X)
    assert "dequantize(w1, w1_scale)" in str(caught.value)
    assert "jax.lax.stop_gradient(w1)" in str(caught.value)
    got = jax.jit(jax.grad(stopped, argnums=(0, 1)))(narrow, X)
    alone = jax.grad(jax.jit(loss), argnums=1)(narrow, X)
    np.testing.assert_allclose(got[1], alone, rtol=1e-5, atol=1e-6)  # two programs of XLA
    assert jnp.any(got[0]["expert"]["w1_scale"])


def test_no_array_of_the_wide_weights_is_made():
    """Codes go into the kernel, in bf16 too, and their scales are read in its epilogue."""
    for dtype in (jnp.float32, jnp.bfloat16):
        x = X.astype(dtype)
        layer = mg.compile(
            ROUTER, mg.quantized(gated), mg.Schedule(format="sorted", target="tpu_v5e")
        )
        lowered = layer.lower(x, experts=4, hidden=24)
        text = lowered.source().partition("def primal")[2].partition("def backward")[0]
        assert text.count("= grouped_dot_tpu(") == 2 * 3
        assert "w_up, sizes, w_up_scale.reshape(E, 1, F)" in text
        assert "w_up.astype" not in text
        assert "per_row(" not in text


def test_what_is_refused_is_refused_with_its_reason():
    with pytest.raises(DtypeError, match='weights cannot be "i4"'):
        mg.quantized(mlp, "i4")
    with pytest.raises(TraceError, match="mlp: w1 is not given"):
        mg.quantized(mlp).quantize({})
    layer = mg.compile(
        ROUTER, mg.quantized(mlp), mg.Schedule(format="sorted", target="tpu_v5e", gather="inside")
    )
    with pytest.raises(LoweringError, match="converts them gathers no rows"):
        layer.lower(X, experts=4, hidden=24)
    on_gpu = mg.Schedule(format="sorted", target="h100", kernel="pallas_gpu", block=64)
    narrow = mg.compile(ROUTER, mg.quantized(mlp), on_gpu)
    with pytest.raises(LoweringError, match="weights are i8, it takes the dtype of the rows"):
        narrow.lower(jax.ShapeDtypeStruct((2, 64, 64), jnp.bfloat16), experts=4, hidden=64)
