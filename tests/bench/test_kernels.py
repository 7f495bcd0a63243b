"""bench/kernels.py: what is timed is the product it says, in every kernel and without grouping."""

import jax.numpy as jnp
import numpy as np
import pytest

from bench import kernels
from bench.__main__ import main
from bench.workloads import WORKLOADS, Workload

TINY = Workload(tokens=24, width=4, hidden=8, experts=3, k=1)


def expected(case, a, b, sizes):
    ends = np.cumsum(sizes)
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    a, b = np.asarray(a, float), np.asarray(b, float)
    if case.product == "drhs":
        return np.stack([a[p].T @ b[p] for p in parts])
    turn = (lambda w: w.T) if case.product == "dlhs" else (lambda w: w)
    return np.concatenate([a[p] @ turn(w) for p, w in zip(parts, b, strict=True)])


@pytest.mark.parametrize("product", kernels.PRODUCTS)
@pytest.mark.parametrize("routing", ["balanced", "zipf"])
def test_every_kernel_computes_the_product(product, routing):
    case = kernels.Case("tiny", TINY, "float32", routing, product)
    a, b, sizes, block = kernels.operands(case)
    want = expected(case, a, b, sizes)
    for name in kernels.KERNELS:
        got = kernels.kernel_call(case, name, block)(a, b, sizes)
        np.testing.assert_allclose(got[: len(want)], want, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("product", kernels.PRODUCTS)
def test_the_batched_product_has_the_same_flops(product):
    case = kernels.Case("tiny", TINY, "float32", "balanced", product)
    (a, b), (many_a, many_b) = kernels.plain_operands(case)
    assert a.size == many_a.size == 24 * a.shape[1]
    spec = kernels.SPECS[product]
    found = jnp.einsum(kernels.batched_spec(spec), many_a, many_b)
    first = jnp.einsum(spec, a[:8], b[:8] if product == "drhs" else b)
    np.testing.assert_allclose(found[0], first, atol=1e-5)


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("routing", ["balanced", "zipf"])
def test_loads_add_up(name, routing):
    load = WORKLOADS[name]
    found = kernels.loads(load, routing)
    assert found.sum() == load.tokens * load.k
    assert found.min() > 0
    assert (np.ptp(found) <= 1) == (routing == "balanced")


def test_quick_run_prints_every_kernel(capsys):
    flags = ["--quick", "--allocator=default", "--products=drhs", "--routings=zipf"]
    assert main(["kernels", *flags]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("quick/float32/zipf/drhs", "batched", *kernels.KERNELS))
