"""Evaluation: counted by hand, with padding that takes no places, at other capacities."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.vmoe.tiny import CONFIG
from vmoe import model
from vmoe.data.images import Images
from vmoe.evaluate import capacity_sweep, evaluate, with_capacity
from vmoe.inference import Choices, predict
from vmoe.model_config import RouterConfig

PARAMS = model.init(CONFIG.model, jax.random.key(0), (8, 8, 1))


def images(count: int = 24) -> Images:
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)
    return Images(pixels, rng.integers(0, 10, count).astype(np.int32), 10)


def sized(size: int, config=CONFIG):
    return replace(config, data=replace(config.data, eval_batch_size=size))


def test_against_the_model_called_once():
    logits, routing = predict(CONFIG.model, PARAMS, images().images)
    report = evaluate(sized(8), PARAMS, images())
    labels = images().labels
    right = np.mean(np.argmax(logits, -1) == labels)
    losses = -jax.nn.log_softmax(logits)[np.arange(24), labels]
    kept = np.asarray(routing["encoderblock_1"]["load"]).sum(0)
    tokens = 24 * (4 + 1)
    assert report.images == 24
    np.testing.assert_allclose(report.accuracy, right)
    np.testing.assert_allclose(report.loss, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(report.dropped, 1 - kept.sum() / (2 * tokens), atol=1e-6)
    np.testing.assert_allclose(report.load["encoderblock_1"], kept / kept.sum(), rtol=1e-6)
    assert report.dropped_in == {"encoderblock_1": report.dropped}
    entropy = np.asarray(routing["encoderblock_1"]["gate_entropy"])
    np.testing.assert_allclose(report.gate_entropy["encoderblock_1"], entropy.mean(), rtol=1e-5)
    assert 0.5 < entropy.min() < entropy.max() < 1  # an untrained router is not sure


@pytest.mark.parametrize("head", ["token", "gap"])
def test_padding_takes_no_places(head):
    """21 images leave 3 of padding in a group of 4, which would fill buffers were they let in."""
    config = with_capacity(replace(CONFIG, model=replace(CONFIG.model, head=head)), 8.0, False)
    params = model.init(config.model, jax.random.key(0), (8, 8, 1))
    padded = images(24)
    real = Images(padded.images[:21], padded.labels[:21], 10)
    report = evaluate(sized(12, config), params, real)
    assert report.images == 21
    assert report.dropped == 0  # with room for all; padding that counted would make this negative
    padded.images[21:] = 0
    by_hand, _ = predict(config.model, params, padded.images, mask=np.arange(24) < 21)
    right = np.mean(np.argmax(by_hand, -1)[:21] == padded.labels[:21])
    np.testing.assert_allclose(report.accuracy, right)


def test_less_capacity_drops_more():
    rows = capacity_sweep(sized(24), PARAMS, images(), (4.0, 0.25))
    assert [factor for factor, _, _ in rows] == [4.0, 0.25]
    for dropped in zip(*[(a.dropped, b.dropped) for _, a, b in rows], strict=True):
        assert 0 == dropped[0] < dropped[1] < 1
    assert rows[0][1].loss == pytest.approx(rows[0][2].loss, rel=1e-5)  # nothing to order
    assert rows[1][1].loss != rows[1][2].loss


@pytest.mark.parametrize("budget, served", [(0.0, 0), (0.5, 10), (1.0, 20)])
def test_what_is_outside_a_budget_is_dropped(budget, served):
    """Groups of 4 images have 20 tokens, all of which would find a place."""
    report = evaluate(sized(24), PARAMS, images(), Choices(budget=budget))
    assert report.dropped == pytest.approx(1 - served / 20)


def test_an_expert_choice_router_drops_the_tokens_that_no_expert_takes():
    router = RouterConfig(name="expert_choice", capacity_factor=0.5, capacity_multiple_of=0)
    config = replace(CONFIG.model, moe=replace(CONFIG.model.moe, router=router))
    report = evaluate(sized(8, replace(CONFIG, model=config)), PARAMS, images())
    _, routing = predict(config, PARAMS, images().images)
    assert 0 < report.dropped < 1
    np.testing.assert_allclose(report.dropped, routing["encoderblock_1"]["dropped"].mean())


def test_a_dense_model_has_no_routing_to_report():
    config = sized(24, replace(CONFIG, model=replace(CONFIG.model, moe=None)))
    params = model.init(config.model, jax.random.key(0), (8, 8, 1))
    report = evaluate(config, params, images())
    assert (report.dropped, report.load) == (None, {})
    assert set(report.scalars()) == {"accuracy", "loss"}
    with pytest.raises(ValueError, match="dense model has nothing to choose"):
        with_capacity(config, 1.0, False)
