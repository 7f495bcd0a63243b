"""The MoE block: grouping, masks, dropout, capacity in training and evaluation, compilation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moegen
from vmoe.errors import UserError
from vmoe.layers.mlp import mlp
from vmoe.model_config import EXCHANGES, OVERLAPS, SAVES, LoweringConfig, MoEConfig, RouterConfig
from vmoe.moe import compiled_layer, group_count, init_moe, moe_block, schedule

KEY = jax.random.key(0)
WIDTH, HIDDEN, TOKENS = 8, 16, 6
ROOMY = RouterConfig(k=1, capacity_factor=8.0)
CONFIG = MoEConfig(num_experts=4, group_images=2, router=ROOMY)
PARAMS = init_moe(KEY, CONFIG, WIDTH, HIDDEN)


def images(count: int, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, TOKENS, WIDTH))


def by_hand(params, x: jax.Array, k: int) -> jax.Array:
    """Every expert on every token, weighted by the k largest gates; no capacity."""
    gates = jax.nn.softmax(x @ params["Router"]["dense"]["kernel"])
    outputs = jax.vmap(lambda expert: mlp(expert, x))(params["Mlp"])
    threshold = jax.lax.top_k(gates, k)[0][..., -1:]
    return jnp.einsum("...e,e...d->...d", jnp.where(gates >= threshold, gates, 0.0), outputs)


@pytest.mark.parametrize("k, dropless", [(1, False), (2, True), (4, False)])
def test_with_room_for_all_it_is_the_sum_over_chosen_experts(k, dropless):
    router = replace(ROOMY, k=k, dropless=dropless)
    config = replace(CONFIG, router=router)
    y, aux = moe_block(config, PARAMS, images(4))
    np.testing.assert_allclose(y, by_hand(PARAMS, images(4), k), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(aux["dropped"], [0.0, 0.0])
    np.testing.assert_array_equal(aux["load"].sum(-1), [k * 2 * TOKENS] * 2)


def test_every_expert_has_its_own_draw():
    for kernel in jax.tree.leaves(PARAMS["Mlp"]):
        for other in range(1, 4):
            assert not np.allclose(kernel[0], kernel[other], atol=0)


def test_groups_route_independently():
    config = replace(CONFIG, router=RouterConfig(k=2, capacity_factor=0.5))
    both, aux = moe_block(config, PARAMS, images(4))
    for group in range(2):
        alone, aux_alone = moe_block(config, PARAMS, images(4)[2 * group : 2 * group + 2])
        np.testing.assert_allclose(both[2 * group : 2 * group + 2], alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(aux["load"][group], aux_alone["load"][0])
    assert float(aux["dropped"].min()) > 0  # or the test would say nothing about buffers


def test_a_broken_group_says_what_to_do():
    with pytest.raises(UserError, match=r"batch of 5 images .*=2; fix: pad it to 6 images"):
        moe_block(CONFIG, PARAMS, images(5))
    with pytest.raises(UserError, match=r"batch of 0 images .* pad it to 8"):
        group_count(0, 8)
    assert group_count(16, 8) == 2


def test_padding_images_take_no_slot_and_change_nothing():
    """Real images behind padding get what they would get in front of it."""
    config = replace(CONFIG, router=RouterConfig(k=2, capacity_factor=0.5))
    real = images(1)
    mask = jnp.array([False, True])
    results = []
    for seed in (5, 6):
        x = jnp.concatenate([100.0 * images(1, seed), real])
        y, aux = moe_block(config, PARAMS, x, mask=mask)
        np.testing.assert_array_equal(y[0], np.zeros((TOKENS, WIDTH)))
        assert float(aux["load"].sum()) <= 2 * TOKENS
        results.append(y[1])
    np.testing.assert_array_equal(results[0], results[1])
    x = jnp.concatenate([real, images(1)])
    first, _ = moe_block(config, PARAMS, x, mask=mask[::-1])
    np.testing.assert_allclose(first[0], results[0], rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(results[0]).max()) > 0


def test_a_batch_of_padding_only_is_zero_and_finite():
    y, aux = moe_block(CONFIG, PARAMS, images(2), mask=jnp.zeros(2, bool))
    np.testing.assert_array_equal(y, jnp.zeros_like(y))
    assert all(np.isfinite(value).all() for value in aux.values())
    assert float(aux["load"].sum()) == 0.0


def test_a_full_mask_is_no_mask():
    masked, _ = moe_block(CONFIG, PARAMS, images(2), mask=jnp.ones(2, bool))
    np.testing.assert_allclose(masked, moe_block(CONFIG, PARAMS, images(2))[0], rtol=1e-6)


def test_one_expert_gets_everything():
    """E=1, k=1: the gate is 1, so the block is that expert; losses and gradients are finite."""
    config = replace(CONFIG, num_experts=1, router=replace(ROOMY, importance_loss_weight=1.0))
    params = init_moe(KEY, config, WIDTH, HIDDEN)
    x = images(2)
    y, aux = moe_block(config, params, x)
    single = jax.tree.map(lambda a: a[0], params["Mlp"])
    np.testing.assert_allclose(y, mlp(single, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(aux["load"], [[2 * TOKENS]])

    def loss(params, x):
        y, aux = moe_block(config, params, x, train=True, key=KEY)
        return y.sum() + aux["importance_loss"].sum()

    gradients = jax.grad(loss, argnums=(0, 1))(params, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


# ---- training and evaluation


def test_evaluation_has_its_own_capacity():
    router = RouterConfig(k=1, capacity_factor=0.25, capacity_multiple_of=0)
    tight = replace(CONFIG, router=router)
    roomy = replace(CONFIG, router=replace(router, eval_capacity_factor=8.0))
    x = images(2)
    dropped = {
        (name, train): float(moe_block(c, PARAMS, x, train=train, key=KEY)[1]["dropped"][0])
        for name, c in (("tight", tight), ("roomy", roomy))
        for train in (False, True)
    }
    assert dropped["roomy", False] == 0.0
    assert min(dropped["tight", False], dropped["tight", True], dropped["roomy", True]) > 0.5


def test_capacity_is_not_rounded_when_told_so():
    router = RouterConfig(k=1, capacity_factor=0.01, capacity_multiple_of=0)
    _, aux = moe_block(replace(CONFIG, router=router), PARAMS, images(2))
    assert float(aux["load"].max()) == 1.0
    rounded = replace(router, capacity_multiple_of=4)
    _, aux = moe_block(replace(CONFIG, router=rounded), PARAMS, images(2))
    assert 1.0 < float(aux["load"].max()) <= 4.0


def test_noise_only_in_training():
    x = images(2)
    plain, aux = moe_block(CONFIG, PARAMS, x)
    with_key, aux_with_key = moe_block(CONFIG, PARAMS, x, key=KEY)
    np.testing.assert_array_equal(plain, with_key)
    assert "load_loss" not in aux.keys() | aux_with_key.keys()
    noisy, aux = moe_block(CONFIG, PARAMS, x, train=True, key=KEY)
    assert "load_loss" in aux
    assert not np.allclose(noisy, plain)
    np.testing.assert_array_equal(noisy, moe_block(CONFIG, PARAMS, x, train=True, key=KEY)[0])


def test_recorded_noise_replaces_the_keys():
    noise = {"noise": jax.random.normal(KEY, (1, 2 * TOKENS, 4))}
    first, second = (
        moe_block(CONFIG, PARAMS, images(2), train=True, key=jax.random.key(s), inputs=noise)[0]
        for s in (1, 2)
    )
    np.testing.assert_array_equal(first, second)
    without_key, _ = moe_block(CONFIG, PARAMS, images(2), train=True, inputs=noise)
    np.testing.assert_allclose(without_key, first, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", ["auto", "onehot", "slots"])
def test_dropout_inside_the_experts(form):
    config = replace(CONFIG, dropout=0.5, format=form, router=replace(ROOMY, noise_std=0.0))
    x = jnp.broadcast_to(images(1), (8, TOKENS, WIDTH))
    plain, _ = moe_block(config, PARAMS, x)
    y, _ = moe_block(config, PARAMS, x, train=True, key=KEY)
    np.testing.assert_allclose(plain, by_hand(PARAMS, x, 1), rtol=1e-4, atol=1e-5)
    assert 0.35 < float((y == 0).mean()) < 0.65
    assert not np.allclose(y[0], y[1])  # one image twice: its draws differ
    again, _ = moe_block(config, PARAMS, x, train=True, key=KEY)
    np.testing.assert_array_equal(y, again)
    other, _ = moe_block(config, PARAMS, x, train=True, key=jax.random.key(1))
    assert not np.allclose(y, other)


# ---- precision and compilation


@pytest.mark.parametrize("form", ["onehot", "slots", "sorted"])
def test_bf16_experts_with_an_f32_router(form):
    config = replace(CONFIG, format=form)
    x = images(2).astype(jnp.bfloat16)
    y, aux = moe_block(config, PARAMS, x)
    fine, fine_aux = moe_block(config, PARAMS, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    # The router sees the same f32 numbers, so it decides and reports the same.
    np.testing.assert_array_equal(aux["load"], fine_aux["load"])
    assert aux["importance_loss"].dtype == jnp.float32
    np.testing.assert_allclose(aux["importance_loss"], fine_aux["importance_loss"], rtol=1e-5)
    error = np.abs(np.asarray(y, np.float32) - fine).max() / np.abs(fine).max()
    assert 0 < error < 0.02


def test_a_config_has_one_layer_for_all_its_blocks():
    assert compiled_layer(CONFIG, True) is compiled_layer(replace(CONFIG), True)
    assert compiled_layer(CONFIG, True) is not compiled_layer(CONFIG, False)


@pytest.mark.parametrize(
    "setting, values",
    [("save", SAVES), ("exchange", EXCHANGES), ("overlap", (*OVERLAPS, 1, 4))],
)
def test_what_a_config_says_of_lowering_is_asked_of_moegen(setting, values):
    mesh = jax.sharding.AbstractMesh((2,), ("expert",))
    for value in values:
        config = replace(CONFIG, lowering=LoweringConfig(**{setting: value}))
        assert schedule(config, mesh) == moegen.Schedule(mesh=mesh, **{setting: value})


def test_nothing_overlaps_where_nothing_is_exchanged():
    config = replace(CONFIG, lowering=LoweringConfig(overlap="ring"))
    assert schedule(config) == moegen.Schedule()


def test_lowering_changes_no_number():
    config = replace(CONFIG, lowering=LoweringConfig(save="least"))

    def loss(params, config):
        return jnp.square(moe_block(config, params, images(4))[0]).sum()

    plain = jax.tree.leaves(jax.grad(loss)(PARAMS, CONFIG))
    for mine, wanted in zip(jax.tree.leaves(jax.grad(loss)(PARAMS, config)), plain, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-5)


def test_a_second_block_of_the_same_shape_compiles_nothing():
    config = replace(CONFIG, num_experts=3)
    first, second = (init_moe(jax.random.key(seed), config, WIDTH, HIDDEN) for seed in (0, 1))
    with pytest.raises(moegen.errors.RecompileError), moegen.no_recompile():
        moe_block(config, first, images(2))
    moe_block(config, first, images(2))
    with moegen.no_recompile():
        moe_block(config, second, images(2))


def test_gradients_reach_router_experts_and_tokens_inside_jit():
    @jax.jit
    def loss(params, x):
        y, aux = moe_block(CONFIG, params, x, train=True, key=KEY)
        return jnp.square(y).sum() + aux["auxiliary_loss"].sum()

    gradients = jax.grad(loss, argnums=(0, 1))(PARAMS, images(4))
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        assert float(jnp.abs(gradient).max()) > 0
