"""The kernels of Pallas Triton in a whole layer: it lowers for cuda, and its numbers."""

import functools

import jax
import numpy as np
import pytest

import moegen as mg
from moegen.errors import LoweringError
from moegen.routers import switch
from moegen.tune.gpu_compile import as_if_on
from moegen.tune.gpu_compiler import DEVICES
from moegen.tune.pallas_triton import NOT_LOWERED
from tests.moegen.backends.test_pallas_gpu import loss_of
from tests.moegen.tune.epilogues import not_lowered

X = jax.random.normal(jax.random.key(0), (1, 45, 20))
deprecated = pytest.mark.filterwarnings(
    "ignore:The Pallas Triton backend is deprecated:DeprecationWarning"
)


@mg.expert
def biased(
    x: mg.floating["C D"],
    w1: mg.floating["D F"],
    b1: mg.floating["F"],
    w2: mg.floating["F D"],
):
    return mg.dot(mg.gelu(mg.dot(x, w1, over="D") + b1), w2, over="F")


def layer(expert=biased, **schedule):
    return mg.compile(switch.bind(dropless=True), expert, mg.Schedule(format="sorted", **schedule))


@functools.cache
def params():
    return layer().init(jax.random.key(1), X, experts=3, hidden=24)


@deprecated
def test_a_layer_with_its_gradients_lowers_for_cuda():
    """Six products by the kernel, with a bias per expert read inside; rows are not padded."""
    made = layer(target="a100", kernel="pallas_triton")
    with as_if_on(DEVICES["a100"]):
        lowered = jax.jit(loss_of(made)).trace(params(), X).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("@__gpu$xla.gpu.triton") == 6
    source = made.lower(params(), X).source()
    assert "epilogue=lambda acc, c0: (acc + c0, gelu(acc + c0))," in source


def test_outputs_and_gradients_are_those_of_the_other_kernels():
    got = loss_of(layer(target="cpu", kernel="pallas_triton", interpret=True, save="least"))
    want = loss_of(layer(target="cpu", kernel="runs"))
    values = (jax.tree.leaves(jax.jit(f)(params(), X)) for f in (got, want))
    for one, other in zip(*values, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


@deprecated
def test_every_elementwise_op_lowers_as_an_epilogue():
    assert not_lowered("pallas_triton") == sorted(NOT_LOWERED)


def test_it_is_for_gpus_unless_asked_to_be_interpreted():
    with pytest.raises(LoweringError, match="pallas_triton cannot run it: it is for gpu"):
        layer(target="cpu", kernel="pallas_triton").lower(params(), X)
