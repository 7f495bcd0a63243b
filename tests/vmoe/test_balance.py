"""Loss-free balancing in training: the bias follows the load, and nothing else moves it."""

import io
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vmoe.tiny import CONFIG, in_workdir
from vmoe.balance import move_biases
from vmoe.checkpoint import Checkpoints
from vmoe.config import OptimConfig
from vmoe.errors import UserError
from vmoe.model_config import RouterConfig
from vmoe.routing import bound_router
from vmoe.state import init_state, make_train_step
from vmoe.train import train

ROUTER = RouterConfig(name="loss_free", noise_std=1.0, bias_update_rate=0.25)
MODEL = replace(CONFIG.model, moe=replace(CONFIG.model.moe, router=ROUTER))
# Decay and momentum would move a bias that is not 0, if they reached it.
OPTIM = OptimConfig(weight_decay=((".*", 0.5),))
BIASED = replace(CONFIG, model=MODEL, optim=OPTIM)
LOAD = {"encoderblock_1": {"load": jnp.array([[3.0, 1.0, 0.0, 4.0], [3.0, 2.0, 1.0, 2.0]])}}


def bias(params):
    return np.asarray(params["Encoder"]["encoderblock_1"]["Moe"]["Router"]["bias"])


def weights():
    return init_state(BIASED, (8, 8, 1)).params


def test_a_worked_example():
    """Loads over both groups are 6, 3, 1, 6 with a mean of 4."""
    before = weights()
    after = jax.tree.map(lambda p: p + 1.0, before)
    moved = move_biases(BIASED, before, after, LOAD)
    np.testing.assert_array_equal(bias(moved), [-0.25, 0.25, 0.25, -0.25])
    np.testing.assert_array_equal(moved["head"]["kernel"], after["head"]["kernel"])


def test_a_frozen_bias_stays():
    before = weights()
    frozen = replace(BIASED, optim=replace(OPTIM, frozen=("Router",)))
    moved = move_biases(frozen, before, jax.tree.map(lambda p: p + 1.0, before), LOAD)
    np.testing.assert_array_equal(bias(moved), bias(before))


def test_other_routers_have_none():
    params = init_state(CONFIG, (8, 8, 1)).params
    assert move_biases(CONFIG, params, params, {}) is params


def test_training_moves_the_bias_by_whole_steps_only():
    state, step = init_state(BIASED, (8, 8, 1)), make_train_step(BIASED)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32),
        "labels": rng.integers(0, 10, 8, np.int32),
    }
    for count in (1, 2, 3):
        state, _ = step(state, batch)
        steps = bias(state.params) / ROUTER.bias_update_rate
        np.testing.assert_array_equal(steps, np.round(steps))
        assert np.abs(steps).max() <= count
    assert np.abs(steps).max() > 0


def test_a_run_goes_on_with_its_biases(tmp_path):
    """The last checkpoint lost, the run goes on from the one before to the same biases."""
    config = in_workdir(tmp_path / "run", model=MODEL, steps=8, optim=OPTIM)
    checkpoints = Checkpoints(config.workdir)
    wanted = bias(train(config).state.params)
    assert np.abs(wanted).max() > 0
    shutil.rmtree(checkpoints.path(8))
    out = io.StringIO()
    np.testing.assert_array_equal(bias(train(config, out).state.params), wanted)
    assert "at step 4" in out.getvalue()


def test_the_rate_means_nothing_to_other_routers():
    router = RouterConfig(name="mixtral", bias_update_rate=0.1)
    with pytest.raises(UserError, match=r'bias_update_rate=0.1 means nothing to the .* "mixtral"'):
        bound_router(router, train=True)
