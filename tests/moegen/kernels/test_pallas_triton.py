"""The kernels of Pallas Triton: their numbers by the interpreter, and that they lower for cuda."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moegen.kernels.grouped_dot.pallas_triton import (
    grouped_dot_triton,
    grouped_outer_triton,
    row_tiles,
)
from moegen.tune.gpu_compile import as_if_on
from moegen.tune.gpu_compiler import DEVICES
from tests.moegen.kernels.grouped_base import GroupedKernelTests, close, random
from tests.moegen.kernels.mosaic_base import struct

TILE = (16, 16, 16, 2)


class TestPallasTriton(GroupedKernelTests):
    """Tiles of 16: every dim of the shape ends inside one, and experts end and start anywhere."""

    unit = 1

    def dot(self, rows, weights, sizes):
        return grouped_dot_triton(rows, weights, sizes, tile=TILE, interpret=True)

    def dot_transposed(self, rows, weights, sizes):
        return grouped_dot_triton(rows, weights, sizes, tile=TILE, transposed=True, interpret=True)

    def outer(self, a, b, sizes):
        return grouped_outer_triton(a, b, sizes, tile=TILE, interpret=True)


def bent(acc, by_row, by_column, one, both, by_expert):
    h = acc + by_column + by_expert
    return jax.nn.gelu(h) * by_row + both, h * jax.nn.sigmoid(one * h)


def fused(rows, weights, sizes, *extra, tile=TILE, interpret=False):
    dtypes = (jnp.bfloat16, jnp.float32)
    return grouped_dot_triton(
        rows, weights, sizes, *extra, tile=tile, epilogue=bent, dtypes=dtypes, interpret=interpret
    )


N, D, F, E = 50, 20, 40, 3
EXTRA = ((N, 1), (1, F), (1, 1), (N, F), (E, 1, F))


def test_an_epilogue_reads_rows_columns_tiles_and_experts():
    made = [jnp.asarray(random(i, *s), jnp.bfloat16) for i, s in enumerate(((N, D), (E, D, F)))]
    extra = [jnp.asarray(random(i, *s), jnp.bfloat16) for i, s in enumerate(EXTRA, 2)]
    first, second = fused(*made, jnp.asarray([21, 0, 20]), *extra, interpret=True)
    x, w = (np.asarray(a, np.float32) for a in made)
    acc = np.concatenate([x[:21] @ w[0], x[21:41] @ w[2]])
    given = [np.asarray(a, np.float32) for a in extra]
    given = [a[:41] if len(a) == N else a for a in given]
    given[-1] = given[-1][[0] * 21 + [2] * 20, 0]
    want = bent(acc, *given)
    close(first[:41], want[0], "bfloat16")
    close(second[:41], want[1], "float32")
    assert not np.asarray(first[41:], np.float32).any()
    assert not np.asarray(second[41:]).any()


@pytest.mark.parametrize("sizes", [(0, 0, 0), (5, 0, 45), (17, 16, 1), (0, 50, 0)])
def test_every_row_is_in_one_tile_of_its_owner(sizes):
    owners, firsts, ends = map(np.asarray, row_tiles(jnp.asarray(sizes), N, 16))
    spans = zip(owners, firsts, ends, strict=True)
    found = [(r, o) for o, first, end in spans for r in range(first, min(first + 16, end))]
    want = np.repeat(np.arange(E + 1), (*sizes, N - sum(sizes)))
    assert sorted(found) == list(enumerate(want))


SIZES = struct(E, dtype=jnp.int32)
DOT, OUTER = (
    functools.partial(f, tile=(128, 128, 32, 4)) for f in (grouped_dot_triton, grouped_outer_triton)
)
LOWERED = {
    "dot": (DOT, struct(2 * N, 768), struct(E, 768, 1408), SIZES),
    "transposed": (
        functools.partial(DOT, transposed=True), struct(2 * N, 1000), struct(E, 704, 1000), SIZES
    ),
    "outer": (OUTER, struct(2 * N, 1408), struct(2 * N, 767), SIZES),
    "epilogue": (fused, struct(N, D), struct(E, D, F), SIZES, *(struct(*s) for s in EXTRA)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", LOWERED)
def test_it_lowers_for_cuda(name):
    function, *arguments = LOWERED[name]
    with as_if_on(DEVICES["a100"]):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("@__gpu$xla.gpu.triton") == 1
