"""A run's first state from a checkpoint: fine-tuning, moments, upcycling, and what does not fit."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vmoe.tiny import CONFIG
from tests.vmoe.vectors import relative_error
from vmoe import model
from vmoe.checkpoint import Checkpoints
from vmoe.config import TrainConfig
from vmoe.errors import UserError
from vmoe.init_config import InitFromConfig
from vmoe.model_config import MoEConfig, RouterConfig
from vmoe.start import start_from
from vmoe.state import TrainState, init_state
from vmoe.weights import files
from vmoe.weights.leaf import flat, leaf_of

SHAPE = (8, 8, 1)
EVERY_ONE_SERVED = RouterConfig(name="mixtral", k=2, dropless=True)
MOE = MoEConfig(num_experts=4, layers=(1,), group_images=2, router=EVERY_ONE_SERVED)
DENSE = replace(CONFIG, model=replace(CONFIG.model, moe=None, dropout=0.0))
SPARSE = replace(DENSE, model=replace(DENSE.model, moe=MOE))


def random_state(config: TrainConfig, seed: int) -> TrainState:
    """A state of the config's shapes with random numbers everywhere; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        ints = jnp.issubdtype(leaf.dtype, jnp.integer)
        values = rng.integers(1, 9, leaf.shape) if ints else rng.normal(size=leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return jax.tree.map(draw, jax.eval_shape(lambda: init_state(config, SHAPE)))


@pytest.fixture(scope="module")
def dense() -> TrainState:
    return random_state(DENSE, 1)


@pytest.fixture(scope="module")
def run(dense, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dense")
    Checkpoints(folder).save(7, tuple(dense), {})
    return str(folder)


@pytest.fixture(scope="module")
def weights(dense, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("weights") / "dense.npz"
    files.write(file, {path: leaf_of(np.asarray(a)) for path, a in flat(dense.params).items()})
    return str(file)


def started(config: TrainConfig, path: str, **init: Any) -> tuple[TrainState, str]:
    config = replace(config, init_from=replace(config.init_from, path=path, **init))
    return start_from(config.validate(), random_state(config, 2)._replace(step=jnp.zeros((), int)))


def same(ours: Any, theirs: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))


def test_the_same_model_takes_all_weights(dense, run):
    state, line = started(DENSE, run)
    assert same(state.params, dense.params)
    assert int(state.step) == 0
    assert not any(np.any(a) for a in jax.tree.leaves(state.opt_state))
    assert line.endswith(f"step_00000007 (vmoe run): {len(flat(dense.params))} arrays")


def test_moments_go_on_and_the_schedule_does_not(dense, run):
    state, _ = started(DENSE, run, moments=True)
    ours, theirs = flat(state.opt_state), flat(dense.opt_state)
    counts = {path: int(ours[path]) == int(theirs[path]) for path in ours if "count" in path}
    assert sorted(counts.values()) == [False, True]  # of the schedule, and of adam
    assert all(np.array_equal(ours[p], theirs[p]) for p in ours if "count" not in p)


def test_other_classes(run):
    other = replace(DENSE, model=replace(DENSE.model, num_classes=3))
    with pytest.raises(UserError, match=r"^checkpoint .*step_00000007: head/.*has 10 classes.*fix"):
        started(other, run)
    state, line = started(other, run, fresh=("^head/",))
    assert same(state.params["head"], random_state(other, 2).params["head"])
    assert line.endswith("; drawn: head/bias, head/kernel")


def test_upcycled_experts_are_the_dense_mlp_each(dense, run):
    state, line = started(SPARSE, run, upcycle=True, moments=True)
    theirs = dense.params["Encoder"]["encoderblock_1"]["Mlp"]
    ours = state.params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]
    assert same(ours, jax.tree.map(lambda a: jnp.stack([a] * 4), theirs))
    assert line.endswith("; drawn: Encoder/encoderblock_1/Moe/Router/dense/kernel")
    moments, before = flat(state.opt_state), flat(dense.opt_state)
    (kernel,) = (p for p in moments if "/nu/" in p and p.endswith("Moe/Mlp/Dense_0/kernel"))
    np.testing.assert_array_equal(moments[kernel][2], before[kernel.replace("Moe/", "")])
    (router,) = (p for p in moments if "/nu/" in p and "Router" in p)
    assert not np.any(moments[router])


def test_adafactors_moments_are_spread_too(tmp_path):
    """It keeps experts apart from other weights, and factors each by itself."""
    optim = replace(DENSE.optim, name="adafactor", min_dim_to_factor=4)
    dense, sparse = replace(DENSE, optim=optim), replace(SPARSE, optim=optim)
    before = random_state(dense, 1)
    Checkpoints(tmp_path).save(7, tuple(before), {})
    state, _ = started(sparse, str(tmp_path), upcycle=True, moments=True)
    ours, theirs = flat(state.opt_state), flat(before.opt_state)
    kept, block = "2/0/inner_states/{}/inner_state", "Encoder/encoderblock_1/{}/Dense_0/kernel"
    for kind, shape in (("v_row", (4, 8)), ("v_col", (4, 16))):
        moment = ours[f"{kept.format('expert')}/{kind}/{block.format('Moe/Mlp')}"]
        dense_moment = theirs[f"{kept.format('other')}/{kind}/{block.format('Mlp')}"]
        np.testing.assert_array_equal(moment, np.broadcast_to(dense_moment, shape))
    count = theirs[f"{kept.format('other')}/count"]
    assert ours[f"{kept.format('expert')}/count"].tolist() == [int(count)] * 4
    assert ours["4/count"] == 0


def logits(config: TrainConfig, params: Any) -> jax.Array:
    images = jax.random.normal(jax.random.key(3), (4, *SHAPE))
    return jax.jit(lambda p: model.apply(config.model, p, images)[0])(params)


def test_upcycled_logits_are_the_dense_models(dense, weights):
    """With combine weights that sum to one and no dropped token; with raw gates they are not."""
    expected = logits(DENSE, dense.params)
    normalised, _ = started(SPARSE, weights, upcycle=True)
    assert relative_error(logits(SPARSE, normalised.params), expected) < 2e-6
    router = RouterConfig(name="noisy_top_k", k=2, dropless=True)
    raw = replace(SPARSE, model=replace(SPARSE.model, moe=replace(MOE, router=router)))
    assert relative_error(logits(raw, normalised.params), expected) > 1e-2


@pytest.mark.parametrize(
    "config, init, message",
    [
        (DENSE, {"upcycle": True}, "no MoE blocks to upcycle to"),
        (SPARSE, {}, "the checkpoint has no Encoder/encoderblock_1/Moe/"),
        (DENSE, {"moments": True}, "no optimiser's state; fix: init_from.moments=False"),
        (
            replace(DENSE, model=replace(DENSE.model, mlp_dim=4)),
            {},
            r"bias is \[16\] in the",
        ),
        (replace(DENSE, model=replace(DENSE.model, head="gap")), {}, "no place for cls of the"),
    ],
)
def test_what_does_not_fit(weights, config, init, message):
    with pytest.raises(UserError, match=message):
        started(config, weights, **init)


def test_another_optimiser_has_other_moments(run):
    sgd = replace(DENSE, optim=replace(DENSE.optim, name="sgd"))
    with pytest.raises(UserError, match="keeps the moments 2/mu, 2/nu, the run's 2/trace; fix"):
        started(sgd, run, moments=True)


def test_no_path_is_no_checkpoint():
    assert InitFromConfig().path == TrainConfig().init_from.path == ""
