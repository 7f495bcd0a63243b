"""Transforms, against recorded results of the released system."""

import numpy as np
import pytest

from tests.vmoe.vectors import load
from vmoe import init_config
from vmoe.errors import UserError
from vmoe.initialize.transforms import TRANSFORMS, transformed

RECORDED = load("x1_initialization_rules")


def target(shape) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_the_config_knows_every_transform():
    assert tuple(TRANSFORMS) == init_config.TRANSFORMS


@pytest.mark.parametrize("case", range(7))
def test_positions(case):
    source, fresh, out = (RECORDED[f"vit_zoom{case}/{name}"] for name in ("src", "tgt", "out"))
    np.testing.assert_array_equal(transformed("resize_positions", [source], fresh, ()), out)


@pytest.mark.parametrize("name, arguments", [("zoom", ()), ("expand_tile", (0, 3))])
def test_recorded(name, arguments):
    source, out = RECORDED[f"{name}/src"], RECORDED[f"{name}/out"]
    np.testing.assert_array_equal(transformed(name, [source], target(out.shape), arguments), out)


def test_shapes():
    array = np.arange(6.0).reshape(1, 6)
    assert transformed("squeeze", [array], target(6), (0,)).shape == (6,)
    np.testing.assert_array_equal(
        transformed("reshape", [array], target((2, 3)), ()), array.reshape(2, 3)
    )


@pytest.mark.parametrize(
    "name, shape, wanted, arguments, reason",
    [
        ("reshape", (6,), (4,), (), "cannot reshape array of size 6"),
        ("squeeze", (6,), (6,), (0,), "not equal to one"),
        ("expand_tile", (6,), (6,), (), "missing 2 required"),
        ("zoom", (6,), (2, 3), (), "shorter"),
        ("resize_positions", (1, 6, 2), (1, 9, 2), (), "6 tokens are no square grid"),
    ],
)
def test_what_cannot_be_done(name, shape, wanted, arguments, reason):
    with pytest.raises(UserError, match=rf"cannot {name} .*{reason}.*; fix: "):
        transformed(name, [np.ones(shape)], target(wanted), arguments)
