"""Multiply-adds: products, loops and convolutions by hand, and a whole model by its layers."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from vmoe.inference import Choices, run
from vmoe.use.macs import has_data_dependent_products, static_macs

A, B = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))


def traced(function, *arguments):
    return jax.make_jaxpr(function)(*arguments).jaxpr


def test_products_within_jit_and_loops():
    once = 2 * 3 * 5 * 4
    assert static_macs(traced(jax.jit(jnp.matmul), A, B)) == once
    looped = traced(lambda a, b: jax.lax.map(lambda pair: pair[0] @ pair[1], (a, b)), A, B)
    assert static_macs(looped) == once
    assert not has_data_dependent_products(looped)


def test_a_loop_that_the_data_ends_is_not_counted_but_told():
    def halve(a):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, a)

    loop = traced(halve, jnp.ones((3, 3)))
    assert static_macs(loop) == 0
    assert has_data_dependent_products(loop)


def test_a_convolution():
    image, kernel = jnp.ones((1, 2, 8, 8)), jnp.ones((6, 2, 3, 3))
    found = traced(lambda i, k: jax.lax.conv(i, k, (1, 1), "VALID"), image, kernel)
    assert static_macs(found) == 6 * 6 * 6 * 2 * 3 * 3


def test_a_model_costs_what_its_layers_do(trained):
    """Slots execute all their places: 4 experts * 8 of a group of 4 images, 5 tokens each."""
    model = replace(trained.config.model, moe=replace(trained.config.model.moe, format="slots"))
    images = jnp.ones((8, 8, 8, 1))
    choices = Choices(capacity=0.75)
    found = static_macs(traced(lambda p, x: run(model, choices, p, x)[0], trained.params, images))
    tokens, width, hidden, experts, places = 5, 8, 16, 4, 8
    attention = 4 * tokens * width * width + 2 * tokens * tokens * width
    image = 4 * 16 * width + 2 * attention + 2 * tokens * width * hidden
    image += tokens * width * experts + 10 * width
    rows = experts * places / 4
    counted = tokens * 2 * experts  # the report's count of choices per expert is a product, too
    assert found / 8 == image + rows * 2 * width * hidden + counted
