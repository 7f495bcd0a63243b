"""The pieces that a product's cycles are summed over are the ones the kernel computes."""

from collections import Counter

import numpy as np
import pytest

from moegen.tune import tpu_cycles
from moegen.tune.product import SKEW, Product, loads
from moegen.tune.tpu_compiler import Compilation
from moegen.tune.tpu_cycles import Steps, block_of, columns_of, pieces, product_cycles, steps_of

ROWS = 8192
DOT = Product("dot", ROWS, 64, 300, 8, ("bfloat16", "bfloat16", "bfloat16"), reads=1)
OUTER = Product("outer", ROWS, 256, 512, 8, ("bfloat16",))


def skewed(experts):
    return loads(ROWS, np.resize(SKEW, experts))


def test_balanced_sizes_are_whole_tiles():
    sizes = loads(ROWS, np.ones(8))
    assert pieces(sizes, ROWS, (1024, 512, 256), False) == Counter({1024: 8})
    assert pieces(sizes, ROWS, (512, 256), True) == Counter({512: 16})


def test_skewed_sizes_are_computed_in_parts_of_16_rows_and_more():
    for experts in (8, 32):
        assert skewed(experts).sum() == ROWS
    assert skewed(8).tolist() == list(SKEW)
    found = pieces(skewed(8), ROWS, (512, 256, 128, 64, 32), False)
    rows = sum(height * n for height, n in found.items())
    assert ROWS <= rows < 1.1 * ROWS
    assert sum(found.values()) >= 16 + 7


def test_a_shared_tile_by_hand():
    """Rows 0..40 and 40..64 of a tile of 64 rows: 32 and a rest of 8; from row 32 on, 32."""
    sizes = np.array([40, 24, 0, ROWS - 64])
    assert pieces(sizes, ROWS, (64, 32, 16), False) == Counter({64: 127, 32: 2, 16: 1})


@pytest.mark.parametrize("sizes", [loads(ROWS, np.ones(32)), skewed(32)])
def test_outer_pieces_cover_all_rows(sizes):
    found = pieces(sizes, ROWS, (256, 128, 64, 32), True)
    assert sum(height * n for height, n in found.items()) >= ROWS


def test_cycles_are_steps_and_the_rest():
    steps = Steps({64: 100.0, 32: 60.0}, {64: 7.0, 32: 5.0})
    assert steps.cycles(Counter({64: 3, 32: 1}), 2, 64) == 7 + 2 * 360
    assert steps_of({(64, 2): 207, (64, 4): 407, (32, 2): 125, (32, 4): 245}) == steps
    assert steps_of({(64, 2): 207, (64, 4): 407, (32, 2): 125, (32, 4): 245}, [48]).step[48] == 80
    half = Product("dot", 128, 64, 300, 2, ("bfloat16", "bfloat16"))
    assert product_cycles(half, (128, 64, 32), steps, np.array([64, 32])) == 7 + 3 * (100 + 2 * 60)


def test_blocks_of_columns():
    assert columns_of(DOT, (128, 64, 32)) == 3
    assert columns_of(OUTER, (128, 256, 64, 32)) == 4


def test_jobs_are_each_height_with_few_steps_and_with_more():
    jobs = block_of(OUTER, (128, 256, 64, 32)).jobs("name")
    assert [job.name for job in jobs] == ["name 64 2", "name 64 4", "name 32 2", "name 32 4"]
    wanted = {"rows": 4 * 32, "depth": 128, "width": 256, "tile": (128, 256, 32), "visits": 4}
    assert wanted.items() <= jobs[-1].arguments.items()
    some = block_of(DOT, (128, 192, 96, 64, 48)).jobs("")
    assert [job.name for job in some] == [" 192 2", " 192 4", " 64 2", " 64 4", " 48 2", " 48 4"]
    assert block_of(DOT, (128, 64)).jobs("")[0].arguments["width"] == 128


def test_a_refusal_is_an_answer_and_the_other_blocks_have_theirs(monkeypatch):
    def compile_for(target, jobs):
        for job in jobs:
            failed = job.name == "bad 32 4"
            cycles = None if failed else 10 * job.arguments["visits"] + 1
            yield Compilation(job.name, "too large" if failed else "", cycles=cycles)

    monkeypatch.setattr(tpu_cycles, "compile_for", compile_for)
    seen = []
    blocks = {"good": block_of(DOT, (128, 64)), "bad": block_of(DOT, (128, 64, 32))}
    found = tpu_cycles.estimate_steps("tpu_v5e", blocks, seen.append)
    assert found == {"good": Steps({64: 10.0}, {64: 1.0}), "bad": "too large"}
    assert len(seen) == 2 + 4
