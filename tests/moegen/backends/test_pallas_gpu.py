"""The Pallas kernels for GPUs in a whole layer: it lowers for cuda, and its numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

import moegen as mg
from moegen.errors import LoweringError
from moegen.experts import mlp
from moegen.routers import switch
from moegen.tune.pallas_gpu import NOT_LOWERED
from tests.moegen.tune.epilogues import not_lowered

X = jax.random.normal(jax.random.key(0), (1, 96, 64), jnp.bfloat16)


def layer(expert=mlp, block=64, **schedule):
    router = switch.bind(dropless=True)
    return mg.compile(router, expert, mg.Schedule(format="sorted", block=block, **schedule))


@functools.cache
def params():
    return layer().init(jax.random.key(1), X, experts=2, hidden=128)


def loss_of(layer):
    def loss(params, x):
        y, _ = layer(params, x)
        return jnp.sum(jnp.cos(y.astype(jnp.float32)))

    return jax.value_and_grad(loss, argnums=(0, 1))


BLACKWELL = {"target": "b200", "kernel": "pallas_tcgen05", "block": 128}


@pytest.mark.parametrize(
    "schedule",
    [
        {"target": "h100", "kernel": "pallas_gpu"},
        {"target": "h100", "kernel": "pallas_gpu", "save": "least"},
        BLACKWELL | {"save": "least"},
    ],
)
def test_a_layer_with_its_gradients_lowers_for_cuda(schedule):
    """Six products by the kernel, their epilogues inside; numbers are not looked at here."""
    made = layer(**schedule)
    lowered = jax.jit(loss_of(made)).trace(params(), X).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("mosaic_gpu_v2") == 6
    source = made.lower(params(), X).source()
    assert "epilogue=lambda acc, c0: (acc + c0, gelu(acc + c0))," in source
    assert "interpret=" not in source.split("def primal(")[1]


def test_relu_is_spelled_as_mosaic_knows_it():
    @mg.expert
    def relu(x: mg.floating["C D"], w1: mg.floating["D F"], w2: mg.floating["F D"]):
        return mg.dot(mg.relu(mg.dot(x, w1, over="D")), w2, over="F")

    made = layer(relu, target="h100", kernel="pallas_gpu")
    params = made.init(jax.random.key(1), X, experts=2, hidden=128)
    lowered = jax.jit(loss_of(made)).trace(params, X).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu_v2" in lowered.as_text()


@pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="this jax cannot interpret copies by TMA"
)
@pytest.mark.parametrize("schedule", [{"kernel": "pallas_gpu"}, BLACKWELL])
def test_outputs_and_gradients_are_those_of_the_other_kernels(schedule):
    got = loss_of(layer(**schedule | {"target": "cpu"}, interpret=True, save="least"))
    want = loss_of(layer(target="cpu", kernel="runs"))
    values = (jax.tree.leaves(jax.jit(f)(params(), X)) for f in (got, want))
    for one, other in zip(*values, strict=True):
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-2 * np.abs(b).max())


def test_every_elementwise_op_lowers_as_an_epilogue():
    """But those named; jax 0.12 has learnt one of them."""
    learnt = {"sqrt"} if hasattr(plgpu, "InterpretGPUParams") else set()
    assert not_lowered("pallas_gpu") == sorted(set(NOT_LOWERED) - learnt)


def test_it_is_for_gpus_unless_asked_to_be_interpreted():
    with pytest.raises(LoweringError, match="pallas_gpu cannot run it: it is for gpu"):
        layer(target="cpu", kernel="pallas_gpu").lower(params(), X)
