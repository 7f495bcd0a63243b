"""What a collective takes: the published formulas, and what follows from them for experts."""

import pytest

from moegen.errors import ScheduleError
from moegen.tune.network import NETWORKS, Box, joined, ring, seconds, shift
from moegen.tune.target import TARGETS

V5P = NETWORKS["tpu_v5p"]
LATENCY = 1e-5
"""Seconds that hops add at most to what the formulas say of bytes."""


def test_every_target_has_links():
    assert NETWORKS.keys() == TARGETS.keys()
    assert all(network.source for network in NETWORKS.values())


@pytest.mark.parametrize("closed", [True, False])
def test_the_formulas_of_a_ring_and_of_a_line(closed):
    """V bytes of all devices together, W both ways of a link: V/W and V/4W, a line twice that."""
    devices, v, both_ways = 16, 1.6e10, 2 * V5P.link
    box = Box((devices,), (closed,))
    gathered = seconds("all_gather", v / devices, box, V5P)
    exchanged = seconds("all_to_all", v / devices, box, V5P)
    line = 1 if closed else 2
    others = (devices - 1) / devices
    assert gathered == pytest.approx(line * v * others / both_ways, abs=LATENCY * devices)
    assert exchanged == pytest.approx(line * v / (4 * both_ways), abs=LATENCY * devices)
    assert seconds("reduce_scatter", v, box, V5P) == pytest.approx(gathered)
    assert seconds("all_reduce", v, box, V5P) == pytest.approx(2 * gathered)


@pytest.mark.parametrize("k, better", [(1, "all_to_all"), (2, "all_to_all"), (8, "all_gather")])
def test_on_a_ring_rows_are_exchanged_for_few_choices_and_gathered_for_many(k, better):
    rows = 4e6  # bytes of a device's tokens
    times = {
        "all_to_all": seconds("all_to_all", k * rows, ring(16), V5P),
        "all_gather": seconds("all_gather", rows, ring(16), V5P),
    }
    assert min(times, key=times.get) == better


def test_a_switch_favours_the_exchange_up_to_as_many_choices_as_devices():
    h100 = NETWORKS["h100"]
    gathered = seconds("all_gather", 1e9, ring(8), h100)
    assert seconds("all_to_all", 7 * 1e9, ring(8), h100) < gathered
    assert seconds("all_to_all", 9 * 1e9, ring(8), h100) > gathered


def test_two_axes_of_the_torus_have_the_links_of_both():
    one, both = ring(8), joined([ring(8), ring(8)])
    assert both.devices == 64
    alone = seconds("all_gather", 1e9, Box((64,), (True,)), V5P)
    assert seconds("all_gather", 1e9, both, V5P) == pytest.approx(alone / 2, rel=1e-3)
    assert seconds("permute", 1e9, one, V5P) == pytest.approx(1e9 / V5P.link, rel=1e-3)


@pytest.mark.parametrize("closed", [True, False])
def test_permutes_to_every_distance_load_links_as_an_exchange_does(closed):
    """Two at a time on a ring, as each uses one direction; each uses both of a line."""
    devices, held = 16, 1.6e10
    box, at_once = Box((devices,), (closed,)), 2 if closed else 1
    each = (seconds("permute", held / devices, box, V5P, by) for by in range(1, devices))
    exchanged = seconds("all_to_all", held, box, V5P)
    assert sum(each) / at_once == pytest.approx(exchanged, rel=1e-3)
    assert shift(5, Box((4, 4), (True, False))) == (1 + 3, 1)


def test_one_device_has_nothing_to_send():
    assert seconds("all_to_all", 1e9, ring(1), V5P) == 0.0


def test_an_unknown_collective_is_refused():
    with pytest.raises(ScheduleError, match='"gossip" has no cost'):
        seconds("gossip", 1.0, ring(2), V5P)
