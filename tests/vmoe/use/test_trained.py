"""A trained model is the one that was evaluated, whatever the way to name it."""

import jax
import numpy as np

from vmoe.checkpoint import Checkpoints
from vmoe.state import TrainState, init_state
from vmoe.use.trained import load_trained
from vmoe.workdir import read_image_shape


def test_its_weights_are_those_that_were_evaluated(trained, workdir):
    """The running average, since the run keeps one."""
    like = jax.eval_shape(lambda: init_state(trained.config, trained.image_shape))
    state = TrainState(*Checkpoints(workdir).restore(tuple(like)).state)
    jax.tree.map(np.testing.assert_array_equal, trained.params, state.evaluated)
    heads = (trained.params["head"]["kernel"], state.params["head"]["kernel"])
    assert np.abs(heads[0] - heads[1]).max() > 0
    assert (trained.step, trained.image_shape) == (12, (8, 8, 1))
    assert read_image_shape(workdir) == (8, 8, 1)


def test_one_checkpoint_of_a_run_by_its_path(workdir):
    earlier = load_trained(Checkpoints(workdir).path(8))
    assert earlier.step == 8
