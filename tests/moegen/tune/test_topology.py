"""Slices of TPUs by name, and the boxes of the torus that a mesh's axes are."""

import pytest

from moegen.errors import TuneError
from moegen.tune.network import Box
from moegen.tune.topology import FAMILIES, boxes, topology


@pytest.mark.parametrize("name", ["v5p:8x8", "v5e:4x4x4", "v5p", "v5e:0x4", "v5e:4x", "v9:2x2"])
def test_what_is_no_slice_is_refused_with_an_example(name):
    with pytest.raises(TuneError) as error:
        topology(name)
    assert name in error.value.what
    assert error.value.fix


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_target_and_links(family):
    made = topology(f"{family}:{'x'.join('2' * FAMILIES[family][2])}")
    assert made.devices == 2 ** FAMILIES[family][2] * made.per_chip == len(made.stand_ins())
    assert made.network.kind == "torus"
    assert made.target.memory > 0


@pytest.mark.parametrize(
    "name, closed",
    [
        ("v5p:8x8x8", (True,) * 3),
        ("v5p:2x4x4", (False,) * 3),
        ("v5e:16x16", (True, True)),
        ("v5e:8x16", (False, True)),
    ],
)
def test_which_dims_of_the_torus_are_rings(name, closed):
    assert topology(name).closed == closed


def test_axes_are_boxes_of_neighbours():
    found = boxes(topology("v5p:4x4x4"), (("data", 16), ("expert", 4)))
    assert found["expert"].devices == 4
    assert sorted(found["expert"].extents) == [1, 1, 4]
    assert found["data"].links == 4  # two rings


def test_an_axis_that_is_part_of_a_ring_is_a_line():
    found = boxes(topology("v5p:8x8x8"), (("data", 16), ("expert", 32)))
    assert sorted(found["expert"].extents) == [1, 4, 8]
    assert found["expert"].links == 3
    assert found["expert"].hops == 4 + 3


def test_the_two_devices_of_a_chip_share_a_place():
    found = boxes(topology("tpu7x:2x2x1"), (("data", 2), ("expert", 4)))
    assert isinstance(found["expert"], Box)
