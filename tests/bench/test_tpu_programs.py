"""A V-MoE's whole training step compiles for TPUs, with the Pallas kernels in it."""

import pytest

from moegen.tune.compiler import Job
from moegen.tune.tpu_compiler import FIX, MISSING, TOPOLOGIES, compile_for, libtpu_folder


@pytest.mark.nightly
@pytest.mark.skipif(libtpu_folder() is None, reason=f"{MISSING}: {FIX}")
@pytest.mark.parametrize("target", TOPOLOGIES)
def test_a_training_step_compiles(target):
    job = Job("step", "bench.tpu_programs:train_step", {"target": target})
    (result,) = compile_for(target, [job], estimate=False)
    assert (result.error, result.kernels) == ("", 2 * 3 * 2)  # two layers of two products each
