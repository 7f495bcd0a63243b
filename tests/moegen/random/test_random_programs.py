"""Random routers and experts: text, passes, formats, derivatives and float64, one by one.

Ops run one at a time, since compiling a layer as a whole takes far longer than it runs.
"""

from __future__ import annotations

import jax
import pytest
from hypothesis import HealthCheck, given, note, reject, settings
from hypothesis import strategies as st

from moegen.ir.text import format_program
from tests.moegen.random.checks import check_layer
from tests.moegen.random.float64 import Unclear
from tests.moegen.random.layers import make_case
from tests.moegen.random.plans import ALL, KINDS, Plan, plans

IN_CI, NIGHTLY_OF_EACH_KIND = 100, 250
"""Programs; the nightly profile runs 2,000 over all kinds."""


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
    """Each op is compiled once per shape and run a few times: optimising it would not pay."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def check(plan: Plan) -> None:
    case = make_case(plan)
    note(format_program(case.program))
    try:
        with jax.disable_jit():
            check_layer(case)
    except Unclear:
        reject()


@settings(max_examples=IN_CI, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_random_programs(plan):
    check(plan)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=NIGHTLY_OF_EACH_KIND, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_many_random_programs(kind, data):
    check(data.draw(plans((kind,), ALL)))
