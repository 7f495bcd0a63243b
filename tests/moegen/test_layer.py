"""Compiled layers: initialisation, stages, transformations, the program cache, and errors."""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen as mg
from moegen.errors import (
    DtypeError,
    RecompileError,
    ScheduleError,
    ShapeError,
    TraceError,
)
from moegen.experts import mlp
from moegen.routers import noisy_top_k

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 4, 3))
ROUTER = noisy_top_k.bind(k=1, capacity_factor=4.0)


@mg.expert
def scaled(x: mg.floating["C D"], scale: mg.floating["D"]):
    return x * scale


LAYER = mg.compile(ROUTER, scaled, mg.Schedule(format="slots"))
PARAMS = {
    "router": {"w": jax.random.normal(jax.random.key(1), (3, 2))},
    "expert": {"scale": jax.random.normal(jax.random.key(2), (2, 3))},
}


def test_init_shapes_and_determinism():
    layer = mg.compile(ROUTER, mlp)
    params = layer.init(KEY, X, experts=2, hidden=5)
    shapes = jax.tree.map(lambda a: a.shape, params)
    assert shapes["router"] == {"w": (3, 2)}
    assert shapes["expert"] == {"w1": (2, 3, 5), "b1": (2, 5), "w2": (2, 5, 3), "b2": (2, 3)}
    again = layer.init(KEY, X, experts=2, hidden=5)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not np.allclose(params["expert"]["w1"][0], params["expert"]["w1"][1])


def test_stages():
    structs = jax.ShapeDtypeStruct(X.shape, X.dtype)
    layer = mg.compile(ROUTER, mlp, mg.Schedule(format="slots"))
    traced = layer.trace(structs, experts=2, hidden=5)
    assert traced.program.sizes["F"] == 5
    lowered = layer.lower(structs, experts=2, hidden=5)
    assert "choose_format" in lowered.stages
    assert lowered.source() == traced.lower().source()
    params = layer.init(KEY, X, experts=2, hidden=5)
    arrays = {**params["router"], **params["expert"], "x": X}
    outputs = lowered.compile()(*(arrays[s.name] for s in lowered.slots))
    np.testing.assert_array_equal(outputs["y"], layer(params, X)[0])


def test_jit_and_grad():
    y, _ = LAYER(PARAMS, X)
    np.testing.assert_allclose(jax.jit(LAYER)(PARAMS, X)[0], y, rtol=1e-6)
    gradient = jax.grad(lambda p: LAYER(p, X)[0].sum())(PARAMS)
    step = 1e-2
    moved = {**PARAMS, "expert": {"scale": PARAMS["expert"]["scale"] + step}}
    slope = (LAYER(moved, X)[0].sum() - y.sum()) / step  # y is linear in the scale
    np.testing.assert_allclose(gradient["expert"]["scale"].sum(), slope, rtol=1e-3)


def test_vmap_equals_a_loop():
    many = jax.random.normal(KEY, (2, 2, 4, 3))
    mapped = jax.vmap(lambda x: LAYER(PARAMS, x)[0])(many)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], LAYER(PARAMS, many[i])[0], rtol=1e-6, atol=1e-7)


def test_one_group_without_a_group_dim():
    y, aux = LAYER(PARAMS, X[0])
    whole, whole_aux = LAYER(PARAMS, X[:1])
    np.testing.assert_array_equal(y, whole[0])
    assert aux["dropped"].shape == ()
    np.testing.assert_array_equal(aux["load"], whole_aux["load"][0])


def test_same_shapes_do_not_compile_again():
    layer = mg.compile(ROUTER, scaled)
    layer(PARAMS, X)
    assert layer.compiled_programs == 1
    with mg.no_recompile():
        layer(PARAMS, X + 1)
        with pytest.raises(RecompileError, match="program number 2"):
            layer(PARAMS, X[:1])
    layer(PARAMS, X[:1])
    assert layer.compiled_programs == 2


def test_source_is_what_runs():
    lowered = LAYER.lower(PARAMS, X)
    namespace = {}
    exec(lowered.source(), namespace)
    arrays = {**PARAMS["router"], **PARAMS["expert"], "x": X}
    alone = jax.jit(namespace["layer"])(*(arrays[s.name] for s in lowered.slots))
    np.testing.assert_array_equal(alone[0], LAYER(PARAMS, X)[0])
    assert "import moegen" not in lowered.source()


def test_tracebacks_show_the_emitted_line():
    function = LAYER.lower(PARAMS, X).compile().function
    with pytest.raises((TypeError, ValueError)) as caught:
        function(X, PARAMS["router"]["w"], jnp.ones((2, 7)))  # scale of the wrong width
    shown = "".join(traceback.format_exception(caught.value))
    assert "<moegen noisy_top_k_scaled " in shown
    assert "* scale" in shown


@pytest.mark.parametrize("form", ["onehot", "slots", "sorted"])
def test_bf16_tokens_with_an_f32_router(form):
    layer = mg.compile(ROUTER, scaled, mg.Schedule(format=form))
    x = X.astype(jnp.bfloat16)
    half = {**PARAMS, "expert": {"scale": PARAMS["expert"]["scale"].astype(jnp.bfloat16)}}
    y, aux = layer(half, x)
    assert y.dtype == jnp.bfloat16
    assert aux["importance_loss"].dtype == jnp.float32
    fine, _ = layer(PARAMS, x.astype(jnp.float32))
    np.testing.assert_allclose(np.asarray(y, np.float32), fine, rtol=0.03, atol=0.02)


def test_noise_does_not_depend_on_how_many_groups_follow():
    both, _ = LAYER(PARAMS, X, key=KEY)
    first, _ = LAYER(PARAMS, X[:1], key=KEY)
    np.testing.assert_allclose(both[:1], first, rtol=1e-6, atol=1e-7)
    twice, _ = LAYER(PARAMS, jnp.stack([X[0], X[0]]), key=KEY)
    assert not np.allclose(twice[0], twice[1])


# ---- errors name the thing and the fix


def test_unknown_input():
    with pytest.raises(TraceError, match=r'no input nois .*did you mean "noise"'):
        LAYER(PARAMS, X, nois=X)


def test_missing_parameter():
    with pytest.raises(TraceError, match=r'w is not given\n(.*\n)*.*params\["router"\]\["w"\]'):
        LAYER({**PARAMS, "router": {}}, X)


def test_wrong_parameter_shape():
    with pytest.raises(ShapeError, match=r"scale is declared .* E is 2 elsewhere"):
        LAYER({**PARAMS, "expert": {"scale": jnp.ones((5, 3))}}, X)


def test_wrong_dtype_for_an_f32_expert():
    @mg.expert
    def single(x: mg.f32["C D"], scale: mg.f32["D"]):
        return x * scale

    with pytest.raises(DtypeError, match="tokens are bf16"):
        mg.compile(ROUTER, single)(PARAMS, X.astype(jnp.bfloat16))


def test_a_mesh_is_jax_s_own():
    with pytest.raises(ScheduleError, match="mesh='four devices' is not a mesh"):
        mg.Schedule(mesh="four devices")


def test_unknown_format():
    with pytest.raises(ScheduleError, match=r'format="slot" is unknown .*did you mean "slots"'):
        mg.Schedule(format="slot")


def test_only_a_router_and_an_expert_compile():
    with pytest.raises(TraceError, match="is not a router"):
        mg.compile(scaled, scaled)
