"""The kernels for Blackwell GPUs: their numbers by the interpreter, and that they lower for cuda.

The interpreter (jax 0.12) keeps a clock of the tensor core too, and raises at races: at slices that
are overwritten while a product reads them, at a sum that is read before it is done.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from moegen.kernels.grouped_dot import mosaic
from moegen.kernels.grouped_dot.pallas_tcgen05 import grouped_dot_tcgen05, grouped_outer_tcgen05
from tests.moegen.kernels.grouped_base import ROWS, GroupedKernelTests
from tests.moegen.kernels.mosaic_base import DTYPES, EXPERTS, bent, check_epilogue, shapes, struct
from tests.moegen.kernels.test_pallas_gpu import detecting_races, needs_interpreter

TILE = (128, 128, 64, 2)


@pytest.fixture(autouse=True)
def races(monkeypatch):
    """Races are errors."""
    monkeypatch.setattr(mosaic, "interpreter", detecting_races)


@needs_interpreter
class TestPallasTcgen05(GroupedKernelTests):
    """Tiles of 128 rows; the last tile of columns is half outside, and so is that of d-weight."""

    rows, depth, width = 16 * ROWS, 64, 192
    unit = 128
    dtypes = ("bfloat16",)

    def dot(self, rows, weights, sizes):
        return grouped_dot_tcgen05(rows, weights, sizes, tile=TILE, interpret=True)

    def dot_transposed(self, rows, weights, sizes):
        tile = (128, 64, 64, 2)
        return grouped_dot_tcgen05(rows, weights, sizes, tile=tile, transposed=True, interpret=True)

    def outer(self, a, b, sizes):
        return grouped_outer_tcgen05(a, b, sizes, tile=TILE, interpret=True)


def fused(rows, weights, sizes, *extra, interpret=False):
    return grouped_dot_tcgen05(
        rows, weights, sizes, *extra, tile=TILE, epilogue=bent, dtypes=DTYPES, interpret=interpret
    )


@needs_interpreter
def test_an_epilogue_reads_rows_columns_and_tiles():
    check_epilogue(fused, 128, 128, 192)


N = 384
SIZES = struct(EXPERTS, dtype=jnp.int32)
DOT, OUTER = (
    functools.partial(f, tile=(128, 256, 64, 3))
    for f in (grouped_dot_tcgen05, grouped_outer_tcgen05)
)
READ = [struct(*s) for s in shapes(128, 128, 192)]
LOWERED = {
    "dot": (DOT, struct(N, 768), struct(EXPERTS, 768, 1408), SIZES),
    "transposed": (
        functools.partial(DOT, transposed=True), struct(N, 1536), struct(EXPERTS, 704, 1536), SIZES
    ),
    "outer": (OUTER, struct(N, 1408), struct(N, 704), SIZES),
    "epilogue": (fused, *READ[:2], SIZES, *READ[2:]),
}  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_it_lowers_for_cuda(name):
    """Widths of real models, no multiple of the tile's among them."""
    function, *arguments = LOWERED[name]
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("mosaic_gpu_v2") == 1
