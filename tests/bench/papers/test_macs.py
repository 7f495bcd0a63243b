"""bench/papers/macs.py and the protocol's models: products are counted, and arms cost the same."""

import jax
import jax.numpy as jnp
import pytest

from bench.papers.macs import count
from bench.papers.protocol import ARMS
from bench.papers.speed import macs_per_image


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_by_hand():
    assert count(lambda a, b: a @ b, shaped(3, 5), shaped(5, 7)) == 3 * 5 * 7
    batched = jax.jit(lambda a, b: jnp.einsum("egd,edf->egf", a, b) + 1.0)
    assert count(batched, shaped(2, 3, 5), shaped(2, 5, 7)) == 2 * 3 * 5 * 7
    assert count(lambda a: jnp.tanh(a) * 2, shaped(9)) == 0


def test_convolutions_by_hand():
    def patches(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert count(patches, shaped(3, 8, 8, 5), shaped(2, 2, 5, 7)) == 3 * 16 * 7 * (2 * 2 * 5)


def test_a_product_in_a_loop_is_refused():
    def loop(a):
        return jax.lax.fori_loop(0, 3, lambda i, x: x @ a, a)

    with pytest.raises(ValueError, match=r"products within (while|scan) are not counted"):
        count(loop, shaped(4, 4))


def test_the_arms_execute_equal_products():
    found = {name: macs_per_image(c, (28, 28, 1), 200) for name, c in ARMS.items()}
    e3 = {name: found.pop(name) for name in tuple(found) if name.startswith("e3")}
    up = {name: found.pop(name) for name in tuple(found) if name.startswith("up_")}
    assert up["up_sparse"] == up["up_raw"] == pytest.approx(1.36 * up["up_dense"], rel=0.01)
    dense, soft = found["dense"], found.pop("soft")
    assert 3.40e6 < dense < 3.42e6
    for name, per_image in found.items():
        assert per_image == pytest.approx(dense, rel=2e-4), name
    assert soft == pytest.approx(dense, rel=6e-3)
    e3["e3_half"] *= 2
    for name, per_image in e3.items():
        assert per_image == pytest.approx(e3["e3"], rel=2e-3), name
