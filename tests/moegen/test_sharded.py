"""A layer on a mesh gives what it gives on one device: outputs, noise, losses, all gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.moegen.sharded import CASES, COMPILER, FLAGS

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5
"""float32, sums of a few dozen terms in another order."""


def errors(*options):
    """Runs the cases on a mesh of host devices, in a process of their own."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.moegen.sharded", *options],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": FLAGS}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def measured():
    return errors()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.nightly])
def test_same_as_on_one_device(measured, name):
    if CASES[name].kernel == "native" and not COMPILER:
        pytest.skip("no C++ compiler to make the custom call with")
    assert measured[name] <= TOLERANCE


@pytest.mark.nightly
def test_the_other_cases_too():
    found = errors("--nightly")
    assert set(found) == {name for name, case in CASES.items() if case.nightly}
    assert {n: e for n, e in found.items() if not e <= TOLERANCE} == {}


@pytest.mark.nightly
def test_same_on_random_meshes():
    found = errors("--random=60")
    assert len(found) > 20
    assert {n: e for n, e in found.items() if not e <= TOLERANCE} == {}
