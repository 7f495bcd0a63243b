"""The pieces that a case's cycles are summed over are the ones the kernel computes."""

from collections import Counter

import numpy as np
import pytest

from bench import tpu_kernels
from bench.__main__ import main


def test_balanced_sizes_are_whole_tiles():
    sizes = tpu_kernels.sizes_of(8, "balanced")
    assert tpu_kernels.pieces(sizes, (1024, 512, 256), False) == Counter({1024: 8})
    assert tpu_kernels.pieces(sizes, (512, 256), True) == Counter({512: 16})


def test_skewed_sizes_are_computed_in_parts_of_16_rows_and_more():
    for experts in (8, 32):
        assert tpu_kernels.sizes_of(experts, "skewed").sum() == tpu_kernels.ROWS
    found = tpu_kernels.pieces(tpu_kernels.sizes_of(8, "skewed"), (512, 256, 128, 64, 32), False)
    rows = sum(height * n for height, n in found.items())
    assert tpu_kernels.ROWS <= rows < 1.1 * tpu_kernels.ROWS
    assert sum(found.values()) >= 16 + 7


def test_a_shared_tile_by_hand():
    """Rows 0..40 and 40..64 of a tile of 64 rows: 32 and a rest of 8; from row 32 on, 32."""
    sizes = np.array([40, 24, 0, tpu_kernels.ROWS - 64])
    found = tpu_kernels.pieces(sizes, (64, 32, 16), False)
    assert found == Counter({64: 127, 32: 2, 16: 1})


def test_megablox_computes_a_shared_tile_for_each():
    sizes = tpu_kernels.sizes_of(8, "skewed")
    assert tpu_kernels.visits(sizes, 512) == Counter({512: 16 + 7})


def test_cycles_are_steps_and_the_rest():
    kernel = tpu_kernels.Kernel("", 2, (64, 32), {64: 100.0, 32: 60.0}, 7.0)
    assert kernel.cycles(Counter({64: 3, 32: 1})) == 7 + 2 * 360


def test_a_target_without_an_estimate(capsys):
    assert main(["kernels", "--target=tpu-v4"]) == 2
    assert "cycles are estimated for tpu_v5e, tpu_v6e" in capsys.readouterr().err


@pytest.mark.parametrize("routing", ["balanced", "skewed"])
def test_outer_pieces_cover_all_rows(routing):
    sizes = tpu_kernels.sizes_of(32, routing)
    found = tpu_kernels.pieces(sizes, (256, 128, 64, 32), True)
    assert sum(height * n for height, n in found.items()) >= tpu_kernels.ROWS
