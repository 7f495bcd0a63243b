"""Losses against their definitions in float64."""

import jax.numpy as jnp
import numpy as np

from vmoe.losses import sigmoid_xent, softmax_xent, targets, training_loss

LOGITS = np.random.default_rng(0).normal(size=(5, 4)) * 3
LABELS = np.array([0, 3, 1, 1, 2])
ONE_HOT = np.eye(4)[LABELS]


def test_softmax_xent():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    ours = softmax_xent(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(ONE_HOT, jnp.float32))
    np.testing.assert_allclose(ours, -np.log(p[np.arange(5), LABELS]), rtol=1e-5)


def test_sigmoid_xent_sums_over_the_classes():
    p = 1 / (1 + np.exp(-LOGITS))
    wanted = -(ONE_HOT * np.log(p) + (1 - ONE_HOT) * np.log(1 - p)).sum(1)
    ours = sigmoid_xent(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(ONE_HOT, jnp.float32))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_huge_logits_stay_finite():
    logits, labels = jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]])
    assert softmax_xent(logits, labels) == 2e4
    assert sigmoid_xent(logits, labels) == 2e4


def test_targets():
    np.testing.assert_array_equal(targets(jnp.asarray(LABELS), 4), ONE_HOT)
    smooth = targets(jnp.asarray(LABELS), 4, 0.2)
    np.testing.assert_allclose(smooth, ONE_HOT * 0.8 + 0.05, rtol=1e-6)
    mixed = jnp.array([[0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_array_equal(targets(mixed, 4), mixed)


def test_training_loss_is_the_sum_of_two_means():
    main = jnp.array([1.0, 3.0])
    total, auxiliary = training_loss(main, {"auxiliary_loss": jnp.array([0.1, 0.2, 0.3])})
    np.testing.assert_allclose([total, auxiliary], [2.2, 0.2], rtol=1e-6)
    assert training_loss(main, {}) == (2.0, 0.0)
