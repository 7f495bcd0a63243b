"""What every kernel of grouped products must do, on any backend: one class, a subclass per kernel.

A subclass says how its three products are called; the cases and what they must give are here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROWS, EXPERTS, DEPTH, WIDTH = 72, 4, 20, 24
"""One shape for all examples, so that a kernel is compiled once; sizes are data."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


@st.composite
def groupings(draw, unit):
    """Rows of each expert, multiples of `unit`: some none, some all, some left over."""
    left, sizes = ROWS // unit, []
    for _ in range(EXPERTS):
        sizes.append(draw(st.integers(0, left)))
        left -= sizes[-1]
    return tuple(unit * n for n in draw(st.permutations(sizes)))


CORNERS = (
    (0, 0, 0, 0),
    (ROWS, 0, 0, 0),
    (0, 0, 0, ROWS),
    (16, 16, 16, 16),
    (32, 8, 0, 32),
)
"""Nothing; one expert with everything, first or last; even; a tile shared by two."""


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def close(got, want, dtype):
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=TOLERANCE[dtype] * scale)


def owners(sizes):
    """The rows of each expert."""
    ends = np.cumsum(sizes)
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


class GroupedKernelTests:
    """The tests. `unit`: sizes are multiples of it. `dtypes`: those the kernel takes.

    A kernel of larger tiles has its own shape: `rows` and `unit` are then larger alike.
    """

    rows, depth, width = ROWS, DEPTH, WIDTH
    unit = 8
    dtypes = ("float32", "bfloat16")
    zeroes_rows_of_none = True

    def dot(self, rows, weights, sizes):
        """Rows [N, D] times weights [E, D, F] of their expert."""
        raise NotImplementedError

    def dot_transposed(self, rows, weights, sizes):
        """Rows [N, F] times weights [E, D, F] of their expert, summed over F."""
        raise NotImplementedError

    def outer(self, a, b, sizes):
        """Per expert, the sum over its rows of a[N, D] b[N, F]."""
        raise NotImplementedError

    def weights(self, dtype):
        """Of every expert, [E, D, F]; a kernel may take another dtype than that of its rows."""
        return jnp.asarray(random(2, EXPERTS, self.depth, self.width), dtype)

    @classmethod
    @functools.cache
    def compiled(cls, name):
        return jax.jit(functools.partial(getattr(cls, name), cls()))

    def check(self, sizes, dtype=None):
        dtype, scale = dtype or self.dtypes[0], self.rows // ROWS
        sizes = tuple(n * scale for n in sizes)
        x, y = random(0, self.rows, self.depth), random(1, self.rows, self.width)
        given_x, given_y, given_w = (
            jnp.asarray(x, dtype),
            jnp.asarray(y, dtype),
            self.weights(dtype),
        )
        x, y, w = (np.asarray(v, np.float64) for v in (given_x, given_y, given_w))
        counts = jnp.asarray(sizes, jnp.int32)
        forward = self.compiled("dot")(given_x, given_w, counts)
        back = self.compiled("dot_transposed")(given_y, given_w, counts)
        outer = self.compiled("outer")(given_x, given_y, counts)
        assert (forward.dtype, back.dtype, outer.dtype) == (jnp.dtype(dtype),) * 3
        for e, mine in enumerate(owners(sizes)):
            close(forward[mine], x[mine] @ w[e], dtype)
            close(back[mine], y[mine] @ w[e].T, dtype)
            close(outer[e], x[mine].T @ y[mine], dtype)
        if self.zeroes_rows_of_none:
            assert not np.asarray(forward[sum(sizes) :], np.float32).any()
            assert not np.asarray(back[sum(sizes) :], np.float32).any()

    def test_corners(self):
        for sizes in CORNERS:
            self.check(sizes)

    def test_dtypes(self):
        for dtype in self.dtypes:
            self.check((24, 0, 40, 8), dtype)

    # Each subclass is a kernel of its own, which hypothesis takes for one test run twice.
    @settings(
        deadline=None, max_examples=8, suppress_health_check=[HealthCheck.differing_executors]
    )
    @given(data=st.data())
    def test_any_sizes(self, data):
        self.check(data.draw(groupings(self.unit * ROWS // self.rows)))

    def test_gradients(self):
        """The three products are each other's derivatives."""
        scale, dtype = self.rows // ROWS, self.dtypes[0]
        counts = [scale * n for n in (16, 0, 40, 8)]
        shapes = ((self.rows, self.depth), (self.rows, self.width))
        x, y = (jnp.asarray(random(i, *s), dtype) for i, s in enumerate(shapes))
        w = self.weights(dtype)
        owner = np.repeat(np.arange(EXPERTS + 1), (*counts, self.rows - sum(counts)))
        hot = jax.nn.one_hot(owner, EXPERTS, dtype=jnp.float32)
        wide = [a.astype(jnp.float32) for a in (x, w, y)]
        _, pull = jax.vjp(lambda x, w: jnp.einsum("nd,ne,edf->nf", x, hot, w), *wide[:2])
        d_x, d_w = pull(wide[2])
        sizes, owned = jnp.asarray(counts, jnp.int32), slice(0, sum(counts))
        close(self.compiled("dot_transposed")(y, w, sizes)[owned], d_x[owned], dtype)
        close(self.compiled("outer")(x, y, sizes), d_w, dtype)
