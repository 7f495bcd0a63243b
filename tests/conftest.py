"""Settings of every test: JAX on the CPU, no caches between runs, fixed random examples.

The environment is set before any test module imports JAX, which reads it only once. Tests of
several devices start a subprocess with their own XLA_FLAGS, so that the rest runs on one device as
a user would.
"""

import gc
import os
import shutil

os.environ["JAX_PLATFORMS"] = "cpu"
# A compiled program left by an earlier run could hide a program that no longer compiles.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
# What "auto" takes, and so what is printed, must not depend on a C++ compiler: see `custom_call`.
os.environ["MOEGEN_NATIVE"] = "off"
# Most of the suite's time is LLVM optimising programs that run once: without, compiling takes half
# as long. XLA_FLAGS="" runs the tests on the code that users get; `.ci/run` does so with the second
# Python.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from hypothesis import settings

# No deadline: a first example compiles, the others do not. Derandomized: the same commit gives the
# same result everywhere; new examples are the nightly run's duty.
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=20, database=None)
settings.register_profile("nightly", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("ci")  # `pytest --hypothesis-profile=nightly` (make nightly) overrides it


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write golden files and the README's generated blocks anew, to be read in the diff",
    )


LONG = (
    "tests/moegen/random/test_random_programs.py",
    "tests/moegen/test_formats_agree.py",
    "tests/moegen/test_router_vectors.py",
    "tests/moegen/test_sharded.py",
    "tests/vmoe/test_sharded.py",
    "tests/moegen/test_oracle.py",
    "tests/vmoe/test_model_vectors.py",
    "tests/moegen/passes/test_meaning.py",
    "tests/vmoe/test_state.py",
    "tests/moegen/tune/test_tpu_compiler.py",
)
"""Files that take more than half a minute. They come first: one of them begun last would run for
minutes by itself, while the other worker has nothing left to do."""


def pytest_collection_modifyitems(items):
    at = {file: number for number, file in enumerate(LONG)}
    items.sort(key=lambda item: at.get(item.nodeid.partition("::")[0], len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def forget_compilations():
    """Drops what a file compiled when its tests are over: kept, it adds up to gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def custom_call(monkeypatch):
    """Lets "auto" take the custom call for this machine's CPU, which is off in all other tests."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler to make the custom call with")
    monkeypatch.setenv("MOEGEN_NATIVE", "auto")
