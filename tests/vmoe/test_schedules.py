"""Schedules: the recorded rates, exactly; and the settings that leave no decay.

Exactly holds for optimised code, which `.ci/run` tests with the second Python (XLA_FLAGS="").
Without LLVM's optimisations, as in conftest.py, rsqrt rounds the other way in the last bit.
"""

import os

import numpy as np
import pytest

from tests.vmoe.vectors import load
from vmoe.config import ScheduleConfig
from vmoe.errors import UserError
from vmoe.schedules import make_schedule

EXPONENTIAL = {"warmup_steps": 10, "transition_steps": 20, "decay_rate": 0.5}
CASES = {
    "constant": (0.1, {"name": "constant"}),
    "warmup_exponential_decay": (1.0, {"name": "warmup_exponential_decay", **EXPONENTIAL}),
    "warmup_exponential_decay_stair": (
        1.0,
        {
            "name": "warmup_exponential_decay", **EXPONENTIAL,
            "staircase": True, "transition_begin": 5, "end_value": 0.1,
        },
    ),
    "warmup_cosine_decay": (
        3e-3, {"name": "warmup_cosine_decay", "end_value": 1e-5, "warmup_steps": 10}
    ),
    "warmup_cosine_decay_ds": (
        3e-3,
        {"name": "warmup_cosine_decay", "end_value": 1e-5, "warmup_steps": 10, "decay_steps": 60},
    ),
    "warmup_linear_decay": (
        1e-3, {"name": "warmup_linear_decay", "end_value": 1e-5, "warmup_steps": 10}
    ),
    "warmup_polynomial_decay": (
        1e-3,
        {"name": "warmup_polynomial_decay", "end_value": 1e-5, "warmup_steps": 10, "power": 2.0},
    ),
    "big_vision_rsqrt": (
        1e-3, {"name": "rsqrt", "warmup_steps": 10, "cooldown_steps": 20, "timescale": 10}
    ),
    "big_vision_rsqrt_nowarm": (1e-3, {"name": "rsqrt", "timescale": 10}),
    "big_vision_rsqrt_nocool": (1e-3, {"name": "rsqrt", "warmup_steps": 10, "timescale": 10}),
}  # fmt: skip
IN_A_HURRY = "optimization_level=0" in os.environ.get("XLA_FLAGS", "")


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_rates_exactly(name):
    recorded = load("h1_schedules")[name]
    peak, fields = CASES[name]
    schedule = make_schedule(ScheduleConfig(**fields), peak, 100)
    ours = np.array([schedule(step) for step in range(121)], np.float32)
    if name == "big_vision_rsqrt":
        # Past the end of the run the recorded rate is negative; ours is 0 there on purpose.
        assert (recorded[101:] < 0).all()
        recorded = np.maximum(recorded, 0)
    if IN_A_HURRY and "rsqrt" in name:
        np.testing.assert_array_max_ulp(ours, recorded, maxulp=2)
    else:
        np.testing.assert_array_equal(ours, recorded)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"name": "warmup_cosine_decay", "warmup_steps": 10}, "leaves nothing of 10 steps"),
        ({"name": "warmup_linear_decay", "warmup_steps": 5, "decay_steps": 5}, "nothing of 5"),
        ({"name": "rsqrt", "warmup_steps": 6, "cooldown_steps": 5}, "do not fit into 10 steps"),
    ],
)
def test_a_run_too_short_for_its_warmup(fields, message):
    with pytest.raises(UserError, match=message):
        make_schedule(ScheduleConfig(**fields), 1.0, 10)
