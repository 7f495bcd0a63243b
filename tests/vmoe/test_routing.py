"""Every router of moegen in the model, by name: it trains, and says what it does not have."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moegen import routers
from vmoe import model
from vmoe.errors import UserError
from vmoe.model_config import ROUTERS, ModelConfig, MoEConfig, RouterConfig
from vmoe.routing import bound_router, check_router, check_scope, has_setting, init_router

OWN_DIMS = {"soft": (("C", 2),), "null_experts": (("Z", 2),)}
IMAGES = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))


def config(name: str, **changes) -> ModelConfig:
    router = RouterConfig(name=name, dims=OWN_DIMS.get(name, ()))
    members = 2 if name == "ensemble" else 1
    moe = MoEConfig(num_experts=4, layers=(0,), group_images=2, ensemble_size=members)
    moe = replace(moe, router=replace(router, **changes))
    return ModelConfig(
        num_classes=3, patch_size=2, width=8, depth=1, mlp_dim=8, num_heads=2, head="gap", moe=moe
    )


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_of_the_package_can_be_trained_with(name):
    check_router(config(name).moe.router)


def test_the_list_is_that_of_moegen():
    assert sorted(ROUTERS) == sorted(routers.__all__)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_trains(name):
    """One gradient step without NaN, and a gradient for the router where one is learnt."""
    cfg = config(name, k=1 if name == "ensemble" else 2)
    params = model.init(cfg, jax.random.key(1), IMAGES.shape[1:])

    def loss(params):
        logits, metrics = model.apply(cfg, params, IMAGES, key=jax.random.key(2), train=True)
        return jnp.mean(jnp.sin(logits)) + jnp.mean(metrics["auxiliary_loss"])

    grads = jax.grad(loss)(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    learnt = jax.tree.leaves(grads["Encoder"]["encoderblock_0"]["Moe"]["Router"])
    assert (name == "hash_layer") == (not learnt)
    # The transport routers weight by plan only through the gates; k_sparse may pick weights of 1.
    if learnt:
        assert max(float(jnp.abs(g).max()) for g in learnt) > 0


def test_a_changed_field_that_the_router_lacks_is_refused():
    with pytest.raises(UserError, match=r'moe.router.dropless=True means nothing to .* "soft"'):
        bound_router(replace(config("soft").moe.router, dropless=True), train=True)


def test_own_settings_are_passed_on_and_checked():
    router = replace(config("switch").moe.router, settings=(("jitter", 0.25),))
    assert dict(bound_router(router, train=True).settings)["jitter"] == 0.25
    wrong = replace(router, settings=(("jiter", 0.25),))
    with pytest.raises(UserError, match=r'no setting jiter \(did you mean "jitter"\?\)'):
        bound_router(wrong, train=True)


def test_a_dim_without_a_size_says_how_to_give_it():
    moe = replace(config("soft").moe, router=RouterConfig(name="soft"))
    with pytest.raises(
        UserError, match=r'size of C is not known .*moe.router.dims=\(\("C", 1\),\)'
    ):
        init_router(jax.random.key(0), moe, 8)


def test_which_routers_have_a_capacity():
    with_one = {n for n in ROUTERS if has_setting(RouterConfig(name=n), "capacity_factor")}
    assert set(ROUTERS) - with_one == {"soft", "shared_experts"}


OWN = """
import moegen as mg

@mg.router
def first(x: mg.floating["S D"], w: mg.f32["D E"], *, k: int = 1):
    weight, expert = mg.top_k(mg.softmax(mg.dot(x, w, over="D"), over="E"), k, over="E")
    return mg.assign(expert, weight, capacity=None), {}
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_a_router_of_a_file_trains(own):
    """By gradient descent on its own weights, reporting nothing."""
    cfg = config(f"{own}:first", k=2)
    params = model.init(cfg.validate(), jax.random.key(1), IMAGES.shape[1:])
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(cfg, p, IMAGES)[0])))(params)
    kernel = grads["Encoder"]["encoderblock_0"]["Moe"]["Router"]["dense"]["kernel"]
    assert float(jnp.abs(kernel).max()) > 0


def test_a_router_without_a_mask_refuses_padding_images(own):
    cfg = config(f"{own}:first")
    params = model.init(cfg, jax.random.key(1), IMAGES.shape[1:])
    with pytest.raises(UserError, match="no input mask, so that padding images would take places"):
        model.apply(cfg, params, IMAGES, mask=jnp.array([True, True, True, False]))
    with pytest.raises(UserError, match="no input mask"):
        check_router(cfg.moe.router)


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "{}:frist",
            r'no router frist in .*own.py \(did you mean "first"\?\); fix: use',
        ),
        ("nowhere.py:first", "nowhere.py is not a file; fix: give FILE.py:NAME"),
        ("no.such.module:first", "no.such.module cannot be imported"),
        ("moegen.experts:mlp", "no router mlp in moegen.experts; fix: use one of none"),
    ],
)
def test_a_router_that_is_not_there_is_named(own, name, message):
    with pytest.raises(UserError, match=r"moe.router.name: " + message):
        bound_router(config(name.format(own)).moe.router, train=True)


def test_buffers_of_all_groups_need_groups_that_divide_by_the_devices():
    moe = config("noisy_top_k", settings=(("scope", "batch"),)).moe
    check_scope(moe, {"data.batch_size": 16, "data.eval_batch_size": 8}, 4)
    check_scope(config("noisy_top_k").moe, {"data.batch_size": 10}, 4)
    with pytest.raises(UserError, match=r"data\.batch_size routes 12 images .* a multiple of 8"):
        check_scope(moe, {"data.batch_size": 12}, 4)


def test_a_model_with_buffers_of_the_batch_drops_fewer_choices():
    """What one group leaves free, another takes."""
    tight = {"k": 1, "capacity_factor": 1.0, "capacity_multiple_of": 0}
    dropped = {}
    for scope in ("group", "batch"):
        chosen = config("noisy_top_k", settings=(("scope", scope),), **tight)
        params = model.init(chosen, jax.random.key(1), (4, 4, 1))
        _, metrics = model.apply(chosen, params, IMAGES)
        dropped[scope] = float(metrics["encoderblock_0"]["dropped"].mean())
    assert dropped["batch"] < dropped["group"]
