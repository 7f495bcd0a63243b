"""bench/papers/e3.py, between.py and scores.py: pairs, images from outside, paired scores."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bench.papers import arms, between, e3
from bench.papers.jobs import silent
from bench.papers.protocol import QUICK
from bench.papers.scores import SCORES, Comparison
from bench.papers.store import Store

SETTINGS = replace(QUICK, seeds=(0, 1))
LABELS = np.array([0, 1, 2, 1], np.int32)
DATA = SimpleNamespace(test=SimpleNamespace(labels=LABELS))


def predictions(seed: int) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(3), 4)).astype(np.float32)


def store_of(folder, names) -> Store:
    store = Store(folder, {})
    for arm, seed in names:
        numbers = {"arm": arm, "seed": seed, "learning_rate": 0.001}
        found = {"log_probabilities": predictions(seed)}
        store.write(arms.run_name(arm, seed), numbers, found)
    return store


def test_a_pair_is_the_mean_of_its_members(tmp_path):
    store = store_of(tmp_path, [(e3.HALF, 1), (e3.HALF, 101)])
    assert e3.members(1) == (1, 101)
    e3._pair(1, store, DATA, silent)
    found = store.arrays(arms.run_name(e3.PAIR, 1))["log_probabilities"]
    mean = (np.exp(predictions(1)) + np.exp(predictions(101))) / 2
    np.testing.assert_allclose(np.exp(found), mean, rtol=1e-5)
    assert store.read(arms.run_name(e3.PAIR, 1))["seed"] == 1


def test_images_from_outside_are_as_large_as_those_of_the_test():
    found = e3.outside_images(5)
    assert found.shape == (5, 28, 28, 1)
    assert found.min() == -1.0
    assert found.max() == 1.0
    np.testing.assert_array_equal(found[:, 2], found[:, 3])  # three rows of one pixel
    assert e3.OUTSIDE_IMAGES % arms.Settings().eval_batch == 0


def test_arms_are_compared_seed_by_seed_once_all_runs_are_there(tmp_path):
    store = store_of(tmp_path, [("a", 0), ("a", 1), ("b", 0)])
    wanted = ("accuracy", "NLL")
    primary = {(("a", "b"), "NLL"): "e3: NLL"}
    arguments = ((("a", "b"),), primary, wanted, store, DATA, SETTINGS)
    assert between.comparisons(*arguments) == []
    store_of(tmp_path, [("b", 1)])
    store.write(
        arms.run_name("b", 0), {"learning_rate": 0.1}, {"log_probabilities": predictions(9)}
    )
    accuracy, nll = between.comparisons(*arguments)
    assert accuracy == Comparison("a - b", "accuracy", accuracy.differences)
    assert nll.primary == "e3: NLL"

    def by_hand(seed):
        return -float(np.mean(predictions(seed)[np.arange(4), LABELS]))

    assert nll.differences == pytest.approx((by_hand(0) - by_hand(9), 0.0), abs=1e-6)
    table = between.table(("a", "c"), wanted, store, DATA, SETTINGS)
    assert [line[0] for line in table] == ["arm", "a"]
    assert table[1][-1] == f"{(by_hand(0) + by_hand(1)) / 2:.4g}"


def test_scores_of_certain_predictions():
    certain = np.log(np.eye(3)[LABELS] + 1e-9).astype(np.float32)
    found = {name: score(certain, LABELS) for name, score in SCORES.items()}
    assert found["accuracy"] == 100.0
    others = [value for name, value in found.items() if name != "accuracy"]
    assert others == pytest.approx([0.0] * len(others), abs=1e-5)
    wrong = np.log(np.eye(3)[(LABELS + 1) % 3] + 1e-9).astype(np.float32)
    assert SCORES["accuracy"](wrong, LABELS) == 0.0
    assert SCORES["ECE"](wrong, LABELS) == pytest.approx(100.0)
    assert SCORES["Brier"](wrong, LABELS) == pytest.approx(2.0)
