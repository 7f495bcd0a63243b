"""Layers that random programs found wrong; each is the smallest one, by hand."""

import jax
import jax.numpy as jnp
import pytest

import moegen as mg
from tests.moegen.random.checks import check_layer
from tests.moegen.random.layers import Case, draw_arrays, trace

SIZES = {"G": 2, "S": 4, "E": 4, "D": 2, "F": 3}


def check(router, expert, **options):
    layer = trace(router, expert, SIZES, key=options.pop("key", False))
    return check_layer(Case(layer, draw_arrays(layer.program, 0), **options))


@mg.router
def top_1(x: mg.f32["S D"], w: mg.f32["D E"]):
    weight, expert = mg.top_k(mg.dot(x, w, over="D"), 1, over="E")
    return mg.assign(expert, weight, capacity=2)


@mg.expert
def dense(x: mg.f32["C D"], w: mg.f32["D F"]):
    return mg.dot(x, w, over="D")


@pytest.mark.parametrize("name", ["inf", "nan", "grad", "λ", "größe"])
def test_outputs_with_names_that_the_parser_took_for_something_else(name):
    @mg.router
    def router(x: mg.f32["S D"], w: mg.f32["D E"]):
        return top_1(x, w), {name: mg.mean(x, over="S D")}

    check(router, dense)


def test_weights_with_more_dims_than_sorted_rows():
    """Rows [N, F] are shorter than the weights [N, D, F] beside them; the result is [N, F, D]."""

    @mg.expert
    def outer(x: mg.f32["C D"], w: mg.f32["D F"]):
        return mg.dot(x, w, over="D") * w

    assert "sorted" in check(top_1, outer)


def test_derivative_of_abs_at_zero():
    @mg.expert
    def absolute(x: mg.f32["C D"]):
        return mg.abs(x * 0.0)

    check(top_1, absolute)


def test_top_k_of_zeros_with_signs():
    """-0.0 counts as less than 0.0: with weights of both signs, 0 * w is either."""

    @mg.router
    def router(x: mg.f32["S D"], w: mg.f32["D E"], u: mg.f32["D"]):
        best, index = mg.top_k(u * 0.0, 2, over="D", dim="J")
        return top_1(x, w), {"best": best, "index": index}

    check(router, dense)


def test_jax_counts_minus_zero_as_less_than_zero():
    _, index = jax.lax.top_k(jnp.array([-0.0, 0.0]), 2)
    assert index.tolist() == [1, 0]
