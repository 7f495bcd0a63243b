"""The optimiser chains: recorded updates, and what the chain does to names and experts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.vmoe.vectors import load, paths, relative_error, tree
from vmoe.config import OptimConfig, ScheduleConfig
from vmoe.optim import make_optimizer

WARMUP = ScheduleConfig(name="warmup_linear_decay", end_value=1e-4, warmup_steps=2)
CONSTANT = ScheduleConfig(name="constant")


def config(name: str, schedule: ScheduleConfig = WARMUP, **fields) -> OptimConfig:
    return OptimConfig(name=name, lr=0.01, schedule=schedule, **fields)


CASES = {
    "adam_wd_all": config("adam", weight_decay=((".*", 0.1),)),
    "adam_wd_regex_clip": config(
        "adam", weight_decay=(("head/kernel", 3.0), (".*/kernel", 0.03)), clip_norm=1.0
    ),
    "adam_bf16_mu": config("adam", momentum_dtype="bfloat16"),
    "sgd_plain": config("sgd", CONSTANT, momentum=0.0),
    "sgd_momentum_clip": config("sgd", clip_norm=10.0),
    "sgd_nesterov_clipvalue": config("sgd", nesterov=True, clip_value=0.5),
    "sgd_frozen": config("sgd", weight_decay=((".*", 0.1),), frozen=("Moe/Mlp",)),
    "sgd_trainable": config("sgd", trainable=("head/.*", "Router")),
    "adam_gradient_scale": config("adam", gradient_scale=(("Moe/Mlp", 8.0),), clip_norm=1.0),
    "adafactor": config(
        "adafactor", weight_decay=((".*/kernel", 0.03),), momentum_dtype="bfloat16"
    ),
    "adafactor_bf16_nofactor": config(
        "adafactor", min_dim_to_factor=128, max_decay_rate=0.5, momentum_dtype="bfloat16"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_updates(name):
    recorded = load("h2_optimizers")
    # A last bit in which two programs differ may round a bf16 moment the other way: 2**-9 of an
    # update, which is at most 1% of a weight.
    tolerance = 5e-5 if CASES[name].momentum_dtype == "bfloat16" else 1e-6
    optimizer = make_optimizer(CASES[name], 10)
    params = tree(recorded, "params0")
    state = optimizer.init(params)
    for i in range(6):
        updates, state = optimizer.update(tree(recorded, f"grads/{i}"), state, params)
        params = optax.apply_updates(params, updates)
        if i in (0, 5):
            for path, wanted in paths(tree(recorded, f"{name}/params{i + 1}")).items():
                assert relative_error(paths(params)[path], wanted) < tolerance, (path, i)


def update(config: OptimConfig, params, gradients):
    optimizer = make_optimizer(config, 10)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_the_first_pattern_counts():
    params = {"head": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    decay = (("kernel", 0.0), ("head", 0.5))
    updates = update(config("sgd", CONSTANT, momentum=0.0, weight_decay=decay), params, zero)[
        "head"
    ]
    np.testing.assert_array_equal(updates["kernel"], [0, 0])
    np.testing.assert_allclose(updates["bias"], [-0.005, -0.005], rtol=1e-6)


def test_frozen_gradients_count_in_the_norm():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.full(1, 3.0), "b": jnp.full(1, 4.0)}
    settings = {"momentum": 0.0, "clip_norm": 1.0, "frozen": ("b",)}
    updates = update(config("sgd", CONSTANT, **settings), params, gradients)
    np.testing.assert_allclose(updates["a"], [-0.01 * 3 / 5], rtol=1e-6)
    assert updates["b"] == 0


def test_adafactor_mixes_no_experts():
    """Also where the expert dim is one of the two largest, which plain adafactor would factor."""
    key = jax.random.key(0)
    gradients = jax.random.normal(key, (64, 48, 40))

    def kernels(g):
        return {"Moe": {"Mlp": {"kernel": g}}}

    settings = config("adafactor", CONSTANT, min_dim_to_factor=32)
    together = update(settings, kernels(jnp.ones_like(gradients)), kernels(gradients))
    first = gradients[:1]
    alone = update(settings, kernels(jnp.ones_like(first)), kernels(first))
    both = (jax.tree.leaves(t)[0][0] for t in (together, alone))
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_adafactor_of_a_dense_model():
    """Without experts it is what it is for the other weights with them."""
    gradient = jax.random.normal(jax.random.key(0), (48, 40))
    dense = {"head": {"kernel": gradient}}
    sparse = dense | {"Moe": {"Mlp": {"kernel": jnp.ones((2, 8, 8))}}}
    settings = config("adafactor", CONSTANT)
    ours, theirs = (update(settings, tree, tree)["head"]["kernel"] for tree in (dense, sparse))
    np.testing.assert_array_equal(ours, theirs)
