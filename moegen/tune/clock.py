"""Times of a grouped product by a kernel with a tile, on the default device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moegen.kernels.grouped_dot.blocks import grouped_dot_blocks, grouped_outer_blocks
from moegen.kernels.grouped_dot.pallas_tpu import grouped_dot_tpu
from moegen.kernels.grouped_dot.pallas_tpu_outer import grouped_outer_tpu
from moegen.kernels.grouped_dot.runs import grouped_dot_runs, grouped_outer_runs
from moegen.tune.product import Product
from moegen.tune.tile_space import Candidate

ROUNDS = 5
BY_BLOCKS = {
    "runs": (grouped_dot_runs, grouped_outer_runs),
    "blocks": (grouped_dot_blocks, grouped_outer_blocks),
}


def seconds_of(product: Product, candidate: Candidate, cases: Sequence[np.ndarray]) -> float:
    """Seconds of a product for these rows of each expert, the median of each case, in all."""
    call = jax.jit(call_of(product, candidate))
    return sum(_median(product, call, sizes) for sizes in cases)


def _median(product: Product, call: Callable[..., Any], sizes: np.ndarray) -> float:
    padded = -(-sizes // product.block) * product.block
    given = (*arrays(product, int(padded.sum())), jnp.asarray(padded, jnp.int32))
    jax.block_until_ready(call(*given))
    seen = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(call(*given))
        seen.append(time.perf_counter() - start)
    return statistics.median(seen)


def call_of(product: Product, candidate: Candidate, interpret: bool = False) -> Callable[..., Any]:
    """A function of the product's two operands, what its epilogue reads, and the sizes.

    The epilogue is stood for by one that adds all it reads and stores the sum as every result.
    """
    p, outer = product, product.kind == "outer"
    if candidate.kernel in BY_BLOCKS:
        kernel: Any = BY_BLOCKS[candidate.kernel][outer]
        shape = (p.experts, p.depth, p.width)
        if outer:
            return lambda a, b, sizes: kernel("nd,nf->df", a, b, sizes, p.block, shape)
        spec = "nd,fd->nf" if p.transposed else "nd,df->nf"
        return lambda a, w, *extra: sum(extra[:-1], kernel(spec, a, w, extra[-1], p.block))
    if outer:
        return lambda a, b, sizes: grouped_outer_tpu(
            a, b, sizes, tile=candidate.tile, interpret=interpret
        )
    made = p.dtypes[1 + p.reads :]
    return lambda a, w, *extra: grouped_dot_tpu(
        a, w, extra[-1], *extra[:-1], tile=candidate.tile, transposed=p.transposed,
        epilogue=lambda acc, *read: (sum(read, acc),) * len(made), dtypes=made,
        interpret=interpret,
    )  # fmt: skip


def arrays(product: Product, rows: int) -> list[jax.Array]:
    """Random operands of a product, then what its epilogue reads."""
    p = product
    weights = (p.experts, p.width, p.depth) if p.transposed else (p.experts, p.depth, p.width)
    shapes = [(rows, p.depth), (rows, p.width) if p.kind == "outer" else weights]
    shapes += [(rows, p.width)] * p.reads
    dtypes = [p.dtypes[0], *p.dtypes[: 1 + p.reads]]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, shape, dtype)
        for key, shape, dtype in zip(keys, shapes, dtypes, strict=True)
    ]
