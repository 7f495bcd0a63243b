"""One training step: three recorded ones of the released system, randomness, gradient norms."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vmoe.tiny import CONFIG
from tests.vmoe.vectors import MODELS, TOLERANCE, load, paths, relative_error, tree
from vmoe.config import AdversarialConfig, MixupConfig, OptimConfig, ScheduleConfig, TrainConfig
from vmoe.optim import make_optimizer
from vmoe.state import TrainState, gradient_norms, init_state, make_train_step
from vmoe.state import loss as state_loss

MODEL = MODELS["c1_vmoe_last2_det"]
ROUTER = replace(MODEL.moe.router, noise_std=0.0)
# The recorded images are 4; their 34 tokens to a group are 2 images.
RECORDED = TrainConfig(
    steps=10,
    loss="sigmoid",
    model=replace(MODEL, moe=replace(MODEL.moe, router=ROUTER)),
    optim=OptimConfig(
        lr=3e-3,
        weight_decay=((".*/kernel", 0.1),),
        clip_norm=1.0,
        schedule=ScheduleConfig(name="warmup_linear_decay", end_value=1e-5, warmup_steps=2),
    ),
)
NAMES = {
    "loss": "total_loss",
    "main_loss": "main_loss",
    "auxiliary_loss": "auxiliary_loss",
    "grad_norm": "global_norm/grads",
    "encoderblock_3/importance_loss": "encoderblock_3/importance_loss",
    "encoderblock_5/importance_loss": "encoderblock_5/importance_loss",
}


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32)
    return {"images": images, "labels": rng.integers(0, 10, 8, np.int32)}


def test_three_recorded_steps():
    recorded = load("x3_train_steps")
    params = tree(recorded, "params0")
    opt_state = make_optimizer(RECORDED.optim, RECORDED.steps).init(params)
    key = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, key)
    train_step = make_train_step(RECORDED)
    for i in (1, 2, 3):
        data = {name: jnp.asarray(recorded[f"step{i}/{name}"]) for name in ("images", "labels")}
        state, metrics = train_step(state, data)
        for ours, theirs in NAMES.items():
            wanted = recorded[f"step{i}/metrics/{theirs}"]
            assert relative_error(metrics[ours], wanted) < TOLERANCE, (i, ours)
    assert state.step == 3
    before = paths(tree(recorded, "params0"))
    for path, wanted in paths(tree(recorded, "params3")).items():
        ours = paths(state.params)[path]
        if path.endswith("key/bias"):
            # Attention does not depend on the keys' bias, so its gradient is rounding noise, which
            # adam raises to steps of up to the learning rate: 0, 1.5e-3, then 3e-3.
            assert np.abs(ours - before[path]).max() < 4.6e-3, path
        else:
            assert relative_error(ours, wanted) < TOLERANCE, path


@pytest.fixture(scope="module")
def train_step():
    return make_train_step(CONFIG)


@cache
def first() -> TrainState:
    return jax.tree.map(np.asarray, init_state(CONFIG, (8, 8, 1)))


def fresh() -> TrainState:
    return jax.tree.map(jnp.asarray, first())


def test_the_same_step_twice_is_the_same_bit_for_bit(train_step):
    (first, a), (second, b) = (train_step(fresh(), batch()) for _ in range(2))
    for x, y in zip(jax.tree.leaves((first, a)), jax.tree.leaves((second, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_each_step_draws_its_own_noise(train_step):
    _, first = train_step(fresh(), batch())
    _, other = train_step(fresh()._replace(step=jnp.asarray(1, jnp.int32)), batch())
    assert first["loss"] != other["loss"]


def test_the_seed_decides_the_weights():
    a, b, c = (init_state(replace(CONFIG, seed=seed), (8, 8, 1)).params for seed in (0, 0, 1))
    assert (a["head"]["kernel"] == b["head"]["kernel"]).all()
    assert (a["head"]["kernel"] != c["head"]["kernel"]).any()


def test_a_dense_model_trains_too():
    dense = replace(CONFIG, model=replace(CONFIG.model, moe=None))
    _, metrics = make_train_step(dense)(init_state(dense, (8, 8, 1)), batch())
    assert metrics["loss"] == metrics["main_loss"]
    assert "auxiliary_loss" not in metrics


def test_the_metrics_of_a_step(train_step):
    _, metrics = train_step(fresh(), batch())
    assert metrics["learning_rate"] == 0  # warmup begins at 0
    np.testing.assert_allclose(
        metrics["loss"], metrics["main_loss"] + metrics["auxiliary_loss"], rtol=1e-6
    )
    assert 0 <= metrics["encoderblock_1/dropped"] < 1
    parts = [v**2 for name, v in metrics.items() if name.startswith("grad_norm/")]
    np.testing.assert_allclose(np.sqrt(sum(parts)), metrics["grad_norm"], rtol=1e-5)


def test_microbatches_and_rematerialised_blocks_change_nothing():
    """With the same routing groups and nothing drawn, parts add up to the plain step."""
    router = replace(CONFIG.model.moe.router, noise_std=0.0)
    moe = replace(CONFIG.model.moe, layers=(0,), router=router)
    plain = replace(CONFIG, model=replace(CONFIG.model, depth=1, dropout=0.0, moe=moe))
    cut = replace(plain, microbatches=2, model=replace(plain.model, remat="full"))
    before = jax.tree.map(np.asarray, init_state(plain, (8, 8, 1)))
    (one, a), (two, b) = (
        make_train_step(c)(jax.tree.map(jnp.asarray, before), batch()) for c in (plain, cut)
    )
    for name in ("loss", "grad_norm", "encoderblock_0/dropped"):
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(two.opt_state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_harder_steps():
    """Images against the model have a larger loss; the running average lags behind."""
    moe = replace(CONFIG.model.moe, layers=(0,))
    optim = replace(CONFIG.optim, average_decay=0.75, schedule=ScheduleConfig(name="constant"))
    plain = replace(CONFIG, optim=optim, model=replace(CONFIG.model, depth=1, moe=moe))
    config = replace(plain, mixup=MixupConfig(0.5), adversarial=AdversarialConfig(1, 0.2))
    before = jax.tree.map(np.asarray, init_state(plain, (8, 8, 1)))
    state, metrics = make_train_step(config)(jax.tree.map(jnp.asarray, before), batch())
    loss = state_loss(plain, before.params, batch(), jax.random.key(0))[0]
    assert metrics["loss"] > loss
    wanted = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before.params, state.params)
    for ours, mean in zip(jax.tree.leaves(state.evaluated), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, mean, atol=1e-6)


def test_gradient_norms_by_part():
    gradients = {
        "head": {"kernel": jnp.array([3.0])},
        "Encoder": {"block": {"b": jnp.array([4.0])}},
    }
    norms = gradient_norms(gradients)
    assert norms == {"grad_norm": 5, "grad_norm/head": 3, "grad_norm/block": 4}
