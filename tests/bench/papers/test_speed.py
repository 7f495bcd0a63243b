"""bench/papers: the arms of a claim execute equal products, those of unused slots included."""

from dataclasses import replace

import pytest

from bench.papers.protocol import ARMS
from bench.papers.speed import macs_per_image


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


def test_a_dropless_layer_has_no_count():
    config = ARMS["vmoe_k1"]
    router = replace(config.moe.router, dropless=True)
    dropless = replace(config, moe=replace(config.moe, format="sorted", router=router))
    with pytest.raises(ValueError, match="products depend on the data; fix: give it a capacity"):
        macs_per_image(dropless, (28, 28, 1), 8)
