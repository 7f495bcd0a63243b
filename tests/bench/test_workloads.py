"""bench/workloads.py: loads are what the routing says, and every cell is there once."""

import jax
import numpy as np
import pytest

from bench.workloads import DTYPES, WORKLOADS, Cell, Workload, cells, inputs, scores


def loads(load: Workload, routing: str) -> np.ndarray:
    _, expert = jax.lax.top_k(scores(load, routing), load.k)
    return np.bincount(np.ravel(expert), minlength=load.experts)


@pytest.mark.parametrize("name", WORKLOADS)
def test_balanced_loads_differ_by_at_most_one(name: str) -> None:
    found = loads(WORKLOADS[name], "balanced")
    assert found.sum() == WORKLOADS[name].tokens * WORKLOADS[name].k
    assert found.max() - found.min() <= 1


def test_zipf_loads_fall_with_the_rank() -> None:
    found = loads(Workload(4096, 8, 8, 8, 1), "zipf")
    wanted = 4096 / np.arange(1, 9) / np.sum(1 / np.arange(1, 9))
    np.testing.assert_allclose(found, wanted, rtol=0.15)


def test_the_arrays_carry_the_scores() -> None:
    cell = Cell("tiny", Workload(6, 5, 4, 3, 2), dtype="bfloat16")
    params, x = inputs(cell)
    assert x.shape == (1, 6, 5)
    assert x.dtype == "bfloat16"
    logits = x[0].astype("float32") @ params["router"]["w"]
    np.testing.assert_allclose(logits, scores(cell.workload, "balanced"), rtol=1e-2)
    assert params["expert"]["w2"].shape == (3, 4, 5)


def test_every_combination_once() -> None:
    found = [cell.key for cell in cells(WORKLOADS)]
    assert len(found) == len(set(found)) == 5 * 2 * 2 * 2 * 2
    assert "A/float32/zipf/dropless/training" in found
    assert {key.split("/")[1] for key in found} == set(DTYPES)
