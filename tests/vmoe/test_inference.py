"""Choices at inference: each changes what it names, refuses what makes no sense, costs no training;
independent images are predicted alike in every company, bit for bit."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.vmoe.tiny import CONFIG
from vmoe import model
from vmoe.errors import UserError
from vmoe.inference import AS_TRAINED, Choices, chosen_model, predict

MODEL = replace(
    CONFIG.model, width=16, depth=2, mlp_dim=32,
    moe=replace(CONFIG.model.moe, layers=(0, 1), group_images=2),
)  # fmt: skip
PARAMS = model.init(MODEL, jax.random.key(0), (8, 8, 1))
IMAGES = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
BLOCKS = ("encoderblock_0", "encoderblock_1")
TOKENS = 5 * 2
"""Of a group: two images of four patches and a class token."""


def used(choices: Choices, images=IMAGES, mask=None):
    mask = np.ones(len(images), bool) if mask is None else mask  # one program with and without
    logits, metrics = jax.device_get(predict(MODEL, PARAMS, images, choices, mask=mask))
    return logits, {name: metrics[name] for name in BLOCKS}


def kept(metrics) -> np.ndarray:
    """Choices served: [blocks, groups]."""
    return np.stack([metrics[name]["load"].sum(-1) for name in BLOCKS])


def test_nothing_chosen_is_the_model_as_it_is():
    wanted, _ = jax.jit(model.apply, static_argnums=0)(MODEL, PARAMS, IMAGES)
    np.testing.assert_allclose(used(AS_TRAINED)[0], wanted, rtol=1e-6, atol=1e-6)
    assert chosen_model(MODEL, AS_TRAINED) == MODEL


def test_another_k_and_no_capacity():
    _, metrics = used(Choices(k=3, dropless=True))
    np.testing.assert_array_equal(kept(metrics), 3 * TOKENS)


def test_capacity_per_block():
    """Ten tokens, two choices, four experts, places in fours: 4 per expert at most, and 40."""
    _, metrics = used(Choices(capacity=(0.5, 8.0)))
    assert kept(metrics)[0].max() <= 4 * 4
    np.testing.assert_array_equal(kept(metrics)[1], 2 * TOKENS)


def test_batch_priority_serves_the_same_number_and_others():
    (plain, a), (priority, b) = (
        used(Choices(capacity=0.5, batch_priority=order)) for order in (False, True)
    )
    np.testing.assert_array_equal(kept(a)[0], kept(b)[0])  # block 2 sees other tokens by then
    assert np.abs(plain - priority).max() > 1e-4


@pytest.mark.parametrize("share", [0.0, 0.5, 0.31, 1.0])
def test_a_budget_serves_its_share(share):
    _, metrics = used(Choices(budget=share))
    np.testing.assert_array_equal(kept(metrics), 2 * np.ceil(share * TOKENS))


def test_padding_images_have_no_share_in_the_budget():
    _, metrics = used(Choices(budget=0.4), mask=np.arange(6) < 5)
    np.testing.assert_array_equal(kept(metrics), 2 * np.array([[4, 4, 2]] * 2))


def test_skipped_tokens_are_dropped_before_the_buffers_fill():
    """Nothing skipped is batch priority; three of ten tokens left have room for all choices."""
    _, skipped = used(Choices(skip=0.7, capacity=0.5))
    np.testing.assert_array_equal(kept(skipped), 2 * 3)
    logits, _ = used(Choices(skip=0.0, capacity=0.5))
    priority, _ = used(Choices(capacity=0.5, batch_priority=True))
    np.testing.assert_allclose(logits, priority, rtol=1e-6, atol=1e-6)


def test_run_time_values_share_a_program():
    assert Choices(budget=0.2).program == Choices(budget=0.9).program
    assert Choices(skip=0.2).program == Choices(skip=0.9).program
    assert Choices(budget=0.2).program != Choices(skip=0.8).program


@pytest.mark.parametrize(
    "choices",
    [
        Choices(independent=True, capacity=0.5, batch_priority=True),
        Choices(independent=True, budget=0.6),
    ],
    ids=str,
)
def test_an_independent_prediction_is_the_same_in_every_company(choices):
    """Permuted, with other companions, alone, in a larger batch, and beside padding."""
    wanted, _ = used(choices)
    order = np.array([3, 0, 5, 4, 1, 2])
    np.testing.assert_array_equal(used(choices, IMAGES[order])[0], wanted[order])
    others = np.concatenate([-IMAGES[:5], IMAGES[:1], IMAGES[5:]])
    np.testing.assert_array_equal(used(choices, others)[0][-2:], wanted[[0, 5]])
    np.testing.assert_array_equal(used(choices, IMAGES[4:5])[0], wanted[4:5])
    padded = np.concatenate([IMAGES[:3], 0 * IMAGES[:3]])
    alone, metrics = used(choices, padded, mask=np.arange(6) < 3)
    np.testing.assert_array_equal(alone[:3], wanted[:3])
    assert (kept(metrics)[:, 3:] == 0).all()


def test_by_default_a_prediction_does_depend_on_the_others():
    """So the test above can fail: with buffers shared by two images, companions matter."""
    tight = Choices(capacity=0.5, batch_priority=True)
    paired, _ = used(tight)
    others, _ = used(tight, np.concatenate([IMAGES[:1], -IMAGES[1:]]))
    assert np.abs(paired[0] - others[0]).max() > 1e-4


@pytest.mark.parametrize(
    "choices, message",
    [
        (Choices(k=5), "moe.router.k=5 is more than moe.num_experts=4"),
        (Choices(capacity=0.0), "eval_capacity_factor=0.0 must be positive"),
        (Choices(capacity=(1.0, 1.0, 1.0)), "3 entries for 2 MoE blocks; fix: one for each of"),
        (Choices(budget=1.5), "--budget=1.5 is no share of the tokens; fix: 0 to 1"),
        (Choices(budget=0.5, skip=0.5), "--budget and --skip exclude each other"),
        (Choices(capacity=1.0, dropless=True), "--dropless and --capacity exclude each other"),
        (Choices(skip=0.5, batch_priority=False), "fix: leave --nobpr out"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(choices, message):
    with pytest.raises(UserError, match=message):
        chosen_model(MODEL, choices)


@pytest.mark.parametrize(
    "name, choices, message",
    [
        ("soft", Choices(capacity=1.0), 'the router "soft" has no capacity_factor to choose'),
        ("expert_choice", Choices(k=1), 'the router "expert_choice" has no k to choose'),
        ("switch", Choices(budget=0.5), 'the router "switch" takes no budget; fix: a lower --cap'),
        (None, Choices(k=1), "a dense model has nothing to choose"),
    ],
)
def test_a_router_without_the_setting_says_so(name, choices, message):
    moe = name and replace(MODEL.moe, router=replace(MODEL.moe.router, name=name))
    with pytest.raises(UserError, match=message):
        chosen_model(replace(MODEL, moe=moe), choices)
