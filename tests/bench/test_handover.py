"""bench/handover.py: what one core pays to read what another wrote."""

import os

import pytest

from bench.handover import handover_ns

on_linux = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="threads cannot be moved to a core here"
)


@on_linux
def test_the_thread_has_its_cores_back():
    before = os.sched_getaffinity(0)
    found = handover_ns()
    assert os.sched_getaffinity(0) == before
    assert (found is None) == (len(before) == 1)
    assert found is None or found > 0


@on_linux
def test_one_core_has_nobody_to_hand_over_to(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert handover_ns() is None
