"""The kernels for Blackwell GPUs: their numbers by the interpreter, and that they lower for cuda.

The interpreter (jax 0.12) keeps a clock of the tensor core too, and raises at races: at slices that
are overwritten while a product reads them, at a sum that is read before it is done.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moegen.kernels.grouped_dot import mosaic
from moegen.kernels.grouped_dot.pallas_tcgen05 import grouped_dot_tcgen05, grouped_outer_tcgen05
from tests.moegen.kernels.grouped_base import ROWS, GroupedKernelTests, close, random
from tests.moegen.kernels.test_pallas_gpu import bent, detecting_races, needs_interpreter, struct

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
    dtypes = (jnp.bfloat16, jnp.float32)
    return grouped_dot_tcgen05(
        rows, weights, sizes, *extra, tile=TILE, epilogue=bent, dtypes=dtypes, interpret=interpret
    )


N, D, F, E = 384, 128, 192, 3
EXTRA = ((N, 1), (1, F), (1, 1), (N, F))


@needs_interpreter
def test_an_epilogue_reads_rows_columns_and_tiles():
    made = [jnp.asarray(random(i, *s), jnp.bfloat16) for i, s in enumerate(((N, D), (E, D, F)))]
    extra = [jnp.asarray(random(i, *s), jnp.bfloat16) for i, s in enumerate(EXTRA, 2)]
    first, second = fused(*made, jnp.asarray([128, 0, 128]), *extra, interpret=True)
    x, w = (np.asarray(a, np.float32) for a in made)
    acc = np.concatenate([x[:128] @ w[0], x[128:256] @ w[2]])
    given = [np.asarray(a, np.float32)[: 256 if a.shape[0] > 1 else 1] for a in extra]
    want = bent(acc, *given)
    close(first[:256], want[0], "bfloat16")
    close(second[:256], want[1], "float32")
    assert not np.asarray(first[256:], np.float32).any()


SIZES = struct(E, dtype=jnp.int32)
DOT, OUTER = (
    functools.partial(f, tile=(128, 256, 64, 3))
    for f in (grouped_dot_tcgen05, grouped_outer_tcgen05)
)
LOWERED = {
    "dot": (DOT, struct(N, 768), struct(E, 768, 1408), SIZES),
    "transposed": (
        functools.partial(DOT, transposed=True), struct(N, 1536), struct(E, 704, 1536), SIZES
    ),
    "outer": (OUTER, struct(N, 1408), struct(N, 704), SIZES),
    "epilogue": (fused, struct(N, D), struct(E, D, F), SIZES, *(struct(*s) for s in EXTRA)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOWERED)
def test_it_lowers_for_cuda(name):
    """Widths of real models, no multiple of the tile's among them."""
    function, *arguments = LOWERED[name]
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("mosaic_gpu_v2") == 1
