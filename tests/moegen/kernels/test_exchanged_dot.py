"""Slots exchanged inside a product: the same numbers, no race, and refusals with their reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from moegen.errors import LoweringError
from moegen.ir.verify import verify
from moegen.kernels.exchanged_dot_tpu import exchanged_bytes, exchanged_tile
from moegen.passes.exchange_inside import overlap_inside
from tests.moegen.kernels.exchanged import CASES, ENVIRONMENT
from tests.moegen.passes.test_overlap import lowered
from tests.moegen.programs import assert_same_meaning

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-5
"""float32: sums of 128 terms in another order."""
WIDE = (8, 4, 128, 4, 128)
"""Sizes that the kernel takes: G, S, D, E and F."""


def run(*options):
    command = [sys.executable, "-W", "error", "-m", "tests.moegen.kernels.exchanged", *options]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip


def test_in_the_interpreter_on_eight_devices():
    done = run()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "RACE" not in done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {*CASES, "a layer and its gradients"}
    assert {name: e for name, e in found.items() if not e <= TOLERANCE} == {}


def test_the_interpreter_sees_a_kernel_that_does_not_wait():
    done = run("hasty")
    assert "race" in (done.stdout + done.stderr).lower()


def test_the_meaning_is_kept_forward_and_backward():
    before = lowered(dims=(8, 4, 4, 4, 8)).stages["choose_format"]
    after = verify(overlap_inside(before), "overlap")
    assert_same_meaning(before, after)
    assert [op.name for op in after.ops].count("exchanged_dot") == 2
    assert {op.attr["split"] for op in after.ops if op.name == "all_to_all"} == {"G"}


def test_the_source_names_the_kernel():
    source = " ".join(lowered(dims=WIDE, overlap="inside", target="tpu_v5e").source().split())
    assert 'dot_2, xe_x = exchanged_dot_tpu( xe, w1, "expert", tile=(4, 128), )' in source
    assert "transposed=True" in source  # the backward's, by the second weights


def test_weights_that_are_gathered_are_there_before_the_product():
    mesh = jax.sharding.AbstractMesh(
        (2, 4), ("fsdp", "expert"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    program = lowered(dims=WIDE, overlap="inside", target="tpu_v5e", mesh=mesh).program
    assert [op.name for op in program.ops].count("exchanged_dot") == 2


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"dims": WIDE}, "it is for tpu, the target is cpu"),
        ({"target": "tpu_v5e"}, "D=8 is not a multiple of 128"),
        ({"dims": WIDE, "target": "tpu_v5e", "dtype": "float16"}, "an operand is f16"),
        ({"dims": WIDE, "format": "onehot"}, "no product reads slots as they come"),
        ({"dims": WIDE, "mesh": None}, "no product reads slots as they come"),
    ],
)
def test_what_it_cannot_run_is_refused(settings, reason):
    with pytest.raises(LoweringError, match=reason):
        lowered(overlap="inside", **settings)


def test_tiles_divide_the_rows_and_fit():
    vmem = 48 * 2**20
    assert exchanged_tile(2176, 1024, 4096, "bfloat16", vmem) == (272, 1024)
    assert exchanged_tile(24, 128, 128, "bfloat16", vmem) == (24, 128)
    tall, wide = exchanged_tile(4096, 8192, 8192, "float32", vmem)
    assert exchanged_bytes(tall, 8192, wide, "float32") <= vmem
    assert exchanged_tile(540, 1024, 4096, "bfloat16", vmem) == (540, 1024)  # no multiple of 16
    assert exchanged_tile(40009, 1024, 1024, "bfloat16", vmem) == ()  # nor small enough as a whole
