"""The table of cycles: what is compiled for it, and what a case's cycles are summed over."""

import numpy as np
import pytest

from bench import tpu_kernels
from bench.__main__ import main
from bench.tpu_kernels import HELD_OUT, ISSUE, PRODUCTS
from moegen.tune.tpu_compiler import Compilation


def test_a_ceiling_by_hand():
    """Rows 0..100 and 100..110: 7 registers, and one that takes as long as 60; summed, 128 each."""
    sizes = np.array([100, 10, 0])
    assert tpu_kernels.ceiling(sizes, False) == 110 / (112 + 60)
    assert tpu_kernels.ceiling(sizes, True) == 110 / 256


def test_megablox_computes_a_shared_tile_for_each():
    sizes = tpu_kernels.routings(ISSUE[0])["skewed"]
    assert tpu_kernels.visits(sizes, 512, False) == 16 + 7


@pytest.mark.parametrize("shape", [*ISSUE, *HELD_OUT])
def test_every_case_has_a_tile_and_all_rows(shape):
    for case in tpu_kernels.cases(shape, "tpu_v5e", PRODUCTS):
        blocks = case.blocks()
        assert len(blocks) > 1 or case.name == "fwd+gelu"
        assert blocks["ours"].heights[0] == case.tall
    assert all(sizes.sum() == shape[0] for sizes in tpu_kernels.routings(shape).values())


def test_a_table_of_steps_that_cost_a_cycle_a_row(monkeypatch):
    """megablox computes 23 tiles of 512 rows where ours computes little more than its rows."""

    def compile_for(target, jobs):
        for job in jobs:
            yield Compilation(job.name, cycles=job.arguments["rows"])

    monkeypatch.setattr(tpu_kernels, "compile_for", compile_for)
    monkeypatch.setattr("moegen.tune.tpu_cycles.compile_for", compile_for)
    todo = tuple(tpu_kernels.cases(ISSUE[0], "tpu_v5e", ("fwd", "fwd+gelu")))
    lines = tpu_kernels.table(ISSUE[0], "tpu_v5e", todo).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["fwd", "balanced"], ["fwd", "skewed"], ["fwd+gelu", "balanced"], ["fwd+gelu", "skewed"],
    ]  # fmt: skip
    balanced, skewed = (line.split()[2:] for line in lines[2:4])
    tile, listing = balanced[2], 8192  # the tile is that of the table that moegen comes with
    blocks = 4096 // int(tile.split("x")[1])
    assert int(balanced[1]) == blocks * 8192 + listing
    assert balanced[3:] == ["1.000", f"{524288 / 16384:.3f}", "16384", "128x2048"]
    assert blocks * 8192 < int(skewed[1]) - listing < 1.1 * blocks * 8192
    assert int(skewed[5]) == 2 * 128 * (64 + 7)  # every border is inside a tile of 128


def test_a_target_without_an_estimate(capsys):
    assert main(["kernels", "--target=tpu-v4"]) == 2
    assert "cycles are estimated for tpu_v5e, tpu_v6e" in capsys.readouterr().err
