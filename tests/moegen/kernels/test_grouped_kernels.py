"""Every kernel of grouped products against the products in float64, by one base of tests."""

import jax.numpy as jnp

from moegen.kernels.grouped_dot import blocks, ragged, runs
from moegen.kernels.grouped_dot.pallas_tpu import grouped_dot_tpu
from moegen.kernels.grouped_dot.pallas_tpu_outer import grouped_outer_tpu
from moegen.ops.grouped import owner_mask
from tests.moegen.kernels.grouped_base import DEPTH, EXPERTS, WIDTH, GroupedKernelTests


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
