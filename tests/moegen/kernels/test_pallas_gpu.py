"""The kernels for GPUs: their numbers by the GPU interpreter, and that they lower for cuda.

Mosaic GPU with Warpgroup lowering semantics. The interpreter (jax 0.12) runs the kernel's own
copies, waits and products on a CPU, where it finds wrong numbers and none of the speed; lowering
runs Mosaic's layout inference, but neither ptxas nor a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from moegen.kernels.grouped_dot import mosaic
from moegen.kernels.grouped_dot.mosaic import interpreter
from moegen.kernels.grouped_dot.pallas_gpu import grouped_dot_gpu, grouped_outer_gpu
from tests.moegen.kernels.grouped_base import ROWS, GroupedKernelTests
from tests.moegen.kernels.mosaic_base import DTYPES, EXPERTS, bent, check_epilogue, shapes, struct

INTERPRETS = hasattr(plgpu, "InterpretGPUParams")
needs_interpreter = pytest.mark.skipif(
    not INTERPRETS, reason=f"jax {jax.__version__} cannot interpret copies by TMA; 0.12 can"
)
TILE = (64, 128, 64, 2)


def detecting_races():
    return plgpu.InterpretGPUParams(detect_races=True)


@pytest.fixture(autouse=True)
def races(monkeypatch):
    """Races are errors: slices that are overwritten while a product reads them, say."""
    monkeypatch.setattr(mosaic, "interpreter", detecting_races)


@needs_interpreter
class TestPallasGpu(GroupedKernelTests):
    """Tiles of 64 rows; the last tile of columns is half outside."""

    rows, depth, width = 8 * ROWS, 64, 192
    unit = 64
    dtypes = ("bfloat16",)

    def dot(self, rows, weights, sizes):
        return grouped_dot_gpu(rows, weights, sizes, tile=TILE, interpret=True)

    def dot_transposed(self, rows, weights, sizes):
        tile = (64, 64, 64, 2)
        return grouped_dot_gpu(rows, weights, sizes, tile=tile, transposed=True, interpret=True)

    def outer(self, a, b, sizes):
        return grouped_outer_gpu(a, b, sizes, tile=(64, 128, 64, 2), interpret=True)


def fused(rows, weights, sizes, *extra, interpret=False):
    return grouped_dot_gpu(
        rows, weights, sizes, *extra, tile=TILE, epilogue=bent, dtypes=DTYPES, interpret=interpret
    )


@needs_interpreter
def test_an_epilogue_reads_rows_columns_and_tiles():
    check_epilogue(fused, 64, 64, 192)


N = 192
SIZES = struct(EXPERTS, dtype=jnp.int32)
DOT, OUTER = (
    functools.partial(f, tile=(128, 128, 64, 4)) for f in (grouped_dot_gpu, grouped_outer_gpu)
)
READ = [struct(*s) for s in shapes(64, 64, 192)]
LOWERED = {
    "dot": (DOT, struct(2 * N, 768), struct(EXPERTS, 768, 1408), SIZES),
    "transposed": (
        functools.partial(DOT, transposed=True),
        struct(2 * N, 1536),
        struct(EXPERTS, 704, 1536),
        SIZES,
    ),
    "outer": (OUTER, struct(2 * N, 1408), struct(2 * N, 768), SIZES),
    "epilogue": (fused, *READ[:2], SIZES, *READ[2:]),
}  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_it_lowers_for_cuda(name):
    """Widths of real models, no multiple of the tile's among them; 384 rows in tiles of 128."""
    function, *arguments = LOWERED[name]
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("mosaic_gpu_v2") == 1


@pytest.mark.skipif(INTERPRETS, reason="this jax has the interpreter")
def test_a_jax_without_the_interpreter_says_so():
    with pytest.raises(NotImplementedError, match=r"fix: use jax 0\.12"):
        interpreter()
