"""Every kernel of grouped products against the products in float64, by one base of tests."""

import ctypes
import functools
import shutil
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from moegen.kernels.grouped_dot import blocks, native, ragged, runs
from moegen.kernels.grouped_dot.pallas_tpu import grouped_dot_tpu
from moegen.kernels.grouped_dot.pallas_tpu_gather import gathered_dot_tpu
from moegen.kernels.grouped_dot.pallas_tpu_outer import grouped_outer_tpu, own_visits
from moegen.ops.grouped import owner_mask
from tests.moegen.kernels.grouped_base import DEPTH, EXPERTS, ROWS, WIDTH, GroupedKernelTests, close


class TestReference(GroupedKernelTests):
    """The meaning of the ops: one-hot products."""

    unit = 1

    def dot(self, rows, weights, sizes):
        return jnp.einsum("nd,ne,edf->nf", rows, self.mask(rows, sizes), weights)

    def dot_transposed(self, rows, weights, sizes):
        return jnp.einsum("nf,ne,edf->nd", rows, self.mask(rows, sizes), weights)

    def outer(self, a, b, sizes):
        return jnp.einsum("nd,ne,nf->edf", a, self.mask(a, sizes), b)

    def mask(self, rows, sizes):
        return owner_mask(sizes, rows.shape[0], rows.dtype)


class TestBlocks(GroupedKernelTests):
    zeroes_rows_of_none = False  # they get the products of rows that are zeros in the format

    def dot(self, rows, weights, sizes):
        return blocks.grouped_dot_blocks("nd,df->nf", rows, weights, sizes, self.unit)

    def dot_transposed(self, rows, weights, sizes):
        return blocks.grouped_dot_blocks("nf,df->nd", rows, weights, sizes, self.unit)

    def outer(self, a, b, sizes):
        shape = (EXPERTS, DEPTH, WIDTH)
        return blocks.grouped_outer_blocks("nd,nf->df", a, b, sizes, self.unit, shape)


class TestRuns(GroupedKernelTests):
    def dot(self, rows, weights, sizes):
        return runs.grouped_dot_runs("nd,df->nf", rows, weights, sizes, self.unit)

    def dot_transposed(self, rows, weights, sizes):
        return runs.grouped_dot_runs("nf,df->nd", rows, weights, sizes, self.unit)

    def outer(self, a, b, sizes):
        shape = (EXPERTS, DEPTH, WIDTH)
        return runs.grouped_outer_runs("nd,nf->df", a, b, sizes, self.unit, shape)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler to make the call with")
class TestNative(GroupedKernelTests):
    """Widths and depths that fill no vector, panel or part of one."""

    unit = 1

    def dot(self, rows, weights, sizes):
        return native.grouped_dot_native(rows, weights, sizes)

    def dot_transposed(self, rows, weights, sizes):
        return native.grouped_dot_native(rows, weights, sizes, transposed=True)

    def outer(self, a, b, sizes):
        return native.grouped_outer_native(a, b, sizes)


class TestNativeOfManyParts(TestNative):
    """Depth and width of several parts and some columns more, odd; rows of more than one chunk."""

    rows, depth, width, unit = 3 * ROWS, 601, 1100, 3


class TestNativeWithoutPairs(TestNativeOfManyParts):
    """bfloat16 widened while it is packed, as a processor without products of its pairs has it."""

    def dot(self, *operands):
        with without_pairs():
            return super().dot(*operands)

    def dot_transposed(self, *operands):
        with without_pairs():
            return super().dot_transposed(*operands)

    def outer(self, *operands):
        with without_pairs():
            return super().outer(*operands)


@contextmanager
def without_pairs():
    """The custom call as it is compiled without AVX512-BF16, in place of this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "TARGETS", targets_without_pairs())
        yield


@functools.cache
def targets_without_pairs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", "c++ -mno-avx512bf16")
        library = ctypes.CDLL(str(native.compiled()))
    for name in native.TARGETS:
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(f"{name}_without_pairs", handler, platform="cpu")
    return tuple(f"{name}_without_pairs" for name in native.TARGETS)


class TestRaggedDot(GroupedKernelTests):
    unit = 1

    def dot(self, rows, weights, sizes):
        return ragged.grouped_dot_ragged(rows, weights, sizes)

    def dot_transposed(self, rows, weights, sizes):
        return ragged.grouped_dot_ragged(rows, weights.swapaxes(1, 2), sizes)

    def outer(self, a, b, sizes):
        return ragged.grouped_outer_ragged(a, b, sizes)


class TestPallasTpu(GroupedKernelTests):
    """Interpreted; tiles of 64 rows, the last one of 8, and parts of them."""

    unit = 1

    def dot(self, rows, weights, sizes):
        return grouped_dot_tpu(rows, weights, sizes, tile=(WIDTH, 64, 32, 16), interpret=True)

    def dot_transposed(self, rows, weights, sizes):
        return grouped_dot_tpu(
            rows, weights, sizes, tile=(DEPTH, 64, 32, 16), transposed=True, interpret=True
        )

    def outer(self, a, b, sizes):
        return grouped_outer_tpu(a, b, sizes, tile=(DEPTH, WIDTH, 64, 32, 16), interpret=True)


class TestPallasTpuNarrow(TestPallasTpu):
    """The same with weights of i8, widened where they are another expert's than before."""

    stored = jnp.int8

    def weights(self, dtype):
        codes = np.random.default_rng(2).normal(size=(EXPERTS, DEPTH, WIDTH)) * 40
        return jnp.asarray(np.round(codes), jnp.float32).astype(self.stored)


class TestPallasTpuNarrowFloat(TestPallasTpuNarrow):
    stored = jnp.float8_e4m3fn


class TestPallasTpuGather(GroupedKernelTests):
    """The same rows, out of order among the tokens; tiles of 32, the last one of 8."""

    unit = 1

    def gathered(self, rows, weights, sizes, wide, **settings):
        order = np.random.default_rng(3).permutation(len(rows))
        source, tokens = jnp.argsort(jnp.asarray(order)), rows[order].reshape(2, -1, rows.shape[1])
        return gathered_dot_tpu(
            tokens, source.astype(jnp.int32), weights, sizes,
            choices=1, tile=(wide, 32, 16), interpret=True, **settings,
        )  # fmt: skip

    def dot(self, rows, weights, sizes):
        return self.gathered(rows, weights, sizes, 16)

    def dot_transposed(self, rows, weights, sizes):
        return self.gathered(rows, weights, sizes, DEPTH, transposed=True)

    def outer(self, a, b, sizes):
        return grouped_outer_tpu(a, b, sizes, tile=(DEPTH, WIDTH, 64, 32, 16), interpret=True)


@pytest.mark.parametrize("gathers", [False, True])
def test_an_epilogue_reads_rows_columns_tiles_and_experts(gathers):
    """Each token has two rows; there are two results, and rows of none are 0 in both."""
    rng = np.random.default_rng(0)
    shapes = ((10, 8), (3, 8, 40), (20, 1), (1, 40), (20, 40), (3, 1, 40))
    x, w, *extra = (rng.normal(size=s).astype(np.float32) for s in shapes)
    source, sizes = rng.permutation(20).astype(np.int32), np.asarray([11, 0, 6], np.int32)

    def bent(acc, by_row, by_column, both, by_expert):
        return (acc + by_column) * by_row, acc * by_expert - both

    given = {
        "tile": (20, 16), "epilogue": bent, "dtypes": (jnp.float32, jnp.bfloat16),
        "interpret": True,
    }  # fmt: skip
    rows = x[source // 2]
    if gathers:
        got = gathered_dot_tpu(jnp.asarray(x), source, w, sizes, *extra, choices=2, **given)
    else:
        got = grouped_dot_tpu(jnp.asarray(rows), w, sizes, *extra, **given)
    owner = np.repeat([0, 2, 2], [11, 6, 3])
    acc = np.einsum("nd,ndf->nf", rows, w[owner])
    want = bent(acc, *extra[:3], extra[3][owner, 0])
    for one, other in zip(got, want, strict=True):
        close(one[:17], other[:17], one.dtype.name)
        assert not np.asarray(one[17:], np.float32).any()


@pytest.mark.parametrize(
    ("stored", "transposed", "sizes"),
    [("float32", False, (20, 0, 3, 40)), ("int8", True, (0, 70, 1, 1))],
)
def test_copies_are_awaited_before_what_they_bring_is_read(stored, transposed, sizes):
    """Two blocks of columns, of two chunks each; a copy is done when it is waited for, not before.

    Tiles of 32 rows, the last of 8.
    """
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(72, 16)).astype(np.float32)
    weights = rng.integers(-9, 9, size=(4, 16, 1536)).astype(stored)
    late = pltpu.InterpretParams(dma_execution_mode="on_wait", detect_races=True)
    got = grouped_dot_tpu(
        jnp.asarray(rows), jnp.asarray(weights.swapaxes(1, 2) if transposed else weights),
        jnp.asarray(sizes), tile=(768, 32, 16), transposed=transposed, interpret=late,
    )  # fmt: skip
    owner = np.repeat(np.arange(4), sizes)
    want = np.einsum("nd,ndf->nf", rows[: len(owner)], weights[owner].astype(np.float32))
    close(got[: len(owner)], want, "float32")
    assert not np.asarray(got[len(owner) :]).any()
    assert not interpret_pallas_call.races.races_found


def test_an_experts_tiles_start_at_its_own_first_row():
    """Rows 0..40, none, 40..64: a tile starts at a multiple of 16, and holds 8 rows of another."""
    start, owner, first, past, count = own_visits(jnp.asarray([40, 0, 24]), 64, 32)
    assert int(count) == 4
    found = [np.asarray(listed)[:4].tolist() for listed in (start, owner, first, past)]
    assert found == [[0, 32, 32, 32], [0, 0, 1, 2], [0, 0, 8, 8], [32, 8, 8, 32]]


def test_a_gradient_of_weights_reads_no_rows_past_the_last():
    a, b = np.ones((1000, 4), np.float32), np.ones((1000, 8), np.float32)
    sizes = jnp.asarray([3, 0, 985, 12])
    found = grouped_outer_tpu(
        jnp.asarray(a), jnp.asarray(b), sizes, tile=(4, 8, 256, 128), interpret=True
    )
    assert np.asarray(found)[:, 0, 0].tolist() == [3, 0, 985, 12]
