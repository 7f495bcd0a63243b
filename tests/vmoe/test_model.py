"""The whole model: heads, positions, dtypes, determinism, masks, and the arguments' errors."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vmoe.vectors import paths, relative_error
from vmoe.errors import UserError
from vmoe.model import apply, features, init, parameter_count
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig

KEY = jax.random.key(0)
SHAPE = (8, 8, 3)
DENSE = ModelConfig(num_classes=5, patch_size=4, width=16, depth=2, mlp_dim=24, num_heads=2)
SPARSE = replace(DENSE, moe=MoEConfig(num_experts=4, layers=(1,), group_images=2))


def images(count: int = 4, seed: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, *SHAPE))


@pytest.mark.parametrize(
    "head, position",
    [("token", "learned"), ("token", "sincos2d"), ("gap", "none"), ("map", "learned")],
)
def test_heads_and_positions(head, position):
    config = replace(DENSE, head=head, position=position, representation_size=6)
    params = init(config, KEY, SHAPE)
    logits, metrics = apply(config, params, images())
    assert logits.shape == (4, 5)
    assert logits.dtype == jnp.float32
    assert metrics == {}
    assert features(config, params, images())[0].shape == (4, 6)
    assert ("cls" in params) == (head == "token")
    assert ("MapHead" in params) == (head == "map")
    assert ("posembed_input" in params["Encoder"]) == (position == "learned")


@pytest.mark.parametrize("position, sees_order", [("sincos2d", True), ("none", False)])
def test_positions_are_what_tells_patches_apart(position, sees_order):
    """Swapping two patches changes the logits with an embedding, and not without."""
    config = replace(DENSE, head="gap", position=position)
    params = init(config, KEY, SHAPE)
    swapped = jnp.concatenate([images()[:, 4:], images()[:, :4]], axis=1)
    a, b = (apply(config, params, x)[0] for x in (images(), swapped))
    assert np.allclose(a, b, rtol=1e-4, atol=1e-5) != sees_order


def test_the_sparse_model_has_the_weights_of_the_dense_one_elsewhere():
    """A weight depends on the key and its path only."""
    dense, sparse = (paths(init(c, KEY, SHAPE)) for c in (DENSE, SPARSE))
    shared = dense.keys() & sparse.keys()
    assert {p for p in sparse if p not in shared} == {
        f"Encoder/encoderblock_1/Moe/{p}"
        for p in (
            "Router/dense/kernel", "Mlp/Dense_0/kernel", "Mlp/Dense_0/bias",
            "Mlp/Dense_1/kernel", "Mlp/Dense_1/bias",
        )
    }  # fmt: skip
    for path in shared:
        np.testing.assert_array_equal(dense[path], sparse[path])


def test_no_two_kernels_are_the_same_draw():
    params = paths(init(replace(SPARSE, representation_size=16, head="map"), KEY, SHAPE))
    kernels = [np.asarray(v).ravel()[:8] for p, v in params.items() if p.endswith("kernel")]
    assert len({tuple(k) for k in kernels}) == len(kernels) > 10


def test_the_metrics_sum_the_auxiliary_losses_over_blocks():
    config = replace(SPARSE, moe=replace(SPARSE.moe, layers=(0, 1)))
    _, metrics = apply(config, init(config, KEY, SHAPE), images(), train=True, key=KEY)
    assert metrics.keys() == {"auxiliary_loss", "encoderblock_0", "encoderblock_1", "rms"}
    assert metrics["rms"].keys() == {"embedding", "encoderblock_0", "encoderblock_1"}
    assert metrics["auxiliary_loss"].shape == (2,)
    parts = [metrics[f"encoderblock_{i}"]["auxiliary_loss"] for i in (0, 1)]
    np.testing.assert_allclose(metrics["auxiliary_loss"], sum(parts), rtol=1e-6)
    first, second = (metrics[f"encoderblock_{i}"]["load_loss"] for i in (0, 1))
    assert not np.allclose(first, second)


def test_zero_head_gives_the_bias():
    config = replace(DENSE, head_zero_init=True, head_bias_init=-2.0)
    logits, _ = apply(config, init(config, KEY, SHAPE), images())
    np.testing.assert_array_equal(logits, np.full((4, 5), -2.0))


# ---- randomness


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_dropout_is_deterministic_given_the_key_and_differs_by_example(rate):
    config = replace(DENSE, **{rate: 0.5})
    params = init(config, KEY, SHAPE)
    x = jnp.broadcast_to(images(1), (4, *SHAPE))
    first, again, other = (
        apply(config, params, x, train=True, key=jax.random.key(s))[0] for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first[0], first[1])
    evaluated, _ = apply(config, params, x, key=KEY)  # a key alone is not training
    np.testing.assert_array_equal(evaluated, apply(DENSE, params, x)[0])


def test_layers_draw_different_noise():
    config = replace(
        SPARSE, moe=replace(SPARSE.moe, layers=(0, 1), router=RouterConfig(noise_std=50.0))
    )
    params = init(config, KEY, SHAPE)
    encoder = params["Encoder"]
    for block in ("encoderblock_0", "encoderblock_1"):  # zero routers: the choice is the noise
        encoder[block]["Moe"]["Router"]["dense"]["kernel"] *= 0.0
    _, metrics = apply(config, params, images(), train=True, key=KEY)
    a, b = (metrics[f"encoderblock_{i}"]["gshard_loss"] for i in (0, 1))
    assert not np.allclose(a, b)


# ---- precision, padding, transformations


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_bf16_computes_near_f32_and_keeps_f32_parameters(config):
    config = replace(config, depth=1, moe=config.moe and replace(config.moe, layers=(0,)))
    params = init(config, KEY, SHAPE)
    coarse = replace(config, dtype="bfloat16")
    assert {v.dtype for v in paths(init(coarse, KEY, SHAPE)).values()} == {np.dtype("float32")}

    def loss(config, params):
        logits, metrics = apply(config, params, images(), train=True, key=KEY)
        assert logits.dtype == jnp.float32
        return jnp.square(logits).mean() + sum(metrics.get("auxiliary_loss", jnp.zeros(1)))

    (fine, fine_grads), (rough, rough_grads) = (
        jax.jit(jax.value_and_grad(partial(loss, c)))(params) for c in (config, coarse)
    )
    assert 0 < abs(rough - fine) < 0.02 * fine
    for path, g in paths(rough_grads).items():
        assert g.dtype == jnp.float32, path
        assert np.isfinite(g).all(), path
    head = "head/kernel"
    assert relative_error(paths(rough_grads)[head], paths(fine_grads)[head]) < 0.05


def test_padding_images_do_not_change_real_ones():
    moe = replace(SPARSE.moe, group_images=4, router=RouterConfig(capacity_factor=0.1))
    config = replace(SPARSE, head="gap", moe=moe)
    params, x = init(config, KEY, SHAPE), images(4)
    mask = jnp.array([False, True, True, False])
    other = jnp.where(mask[:, None, None, None], x, 10.0 * images(4, seed=9))
    a, b = (apply(config, params, batch, mask=mask)[0] for batch in (x, other))
    np.testing.assert_allclose(a[1:3], b[1:3], rtol=1e-5, atol=1e-6)
    unmasked = apply(config, params, other)[0]
    assert not np.allclose(unmasked[1:3], a[1:3], rtol=1e-3)  # without a mask they do


def test_jit_agrees_with_eager():
    params = init(SPARSE, KEY, SHAPE)
    eager, _ = apply(SPARSE, params, images())
    jitted, _ = jax.jit(lambda p, x: apply(SPARSE, p, x))(params, images())
    np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-6)


def test_parameter_count_is_the_sum_over_the_tree():
    leaves = jax.tree.leaves(init(SPARSE, KEY, SHAPE))
    assert parameter_count(SPARSE, SHAPE) == sum(leaf.size for leaf in leaves)


# ---- errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train": True}, r"train=True draws dropout and routing noise; fix: give key="),
        ({"mask": np.ones(3, bool)}, r"mask is bool\[3\]; fix: give bool\[4\]"),
        ({"mask": np.ones(4, np.float32)}, r"mask is float32\[4\]"),
        ({"moe_inputs": [{}, {}]}, r"moe_inputs has 2 entries for 1 MoE blocks"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, r"images are uint8\[4, 8, 8, 3\]; fix"),
        ({"images": np.zeros((8, 8, 3), np.float32)}, r"fix: give floating \[batch"),
        ({"images": np.zeros((4, 12, 12, 3), np.float32)}, r"gives 10 tokens, .* has 5"),
        ({"images": np.zeros((3, 8, 8, 3), np.float32)}, r"batch of 3 images .* pad it to 4"),
    ],
)
def test_an_argument_that_does_not_fit(arguments, message):
    params = init(SPARSE, KEY, SHAPE)
    batch = arguments.pop("images", images())
    with pytest.raises(UserError, match=message):
        apply(SPARSE, params, batch, **arguments)


def test_init_refuses_a_broken_config_and_image():
    with pytest.raises(UserError, match=r"width=16 is not a multiple of num_heads=3"):
        init(replace(DENSE, num_heads=3), KEY, SHAPE)
    with pytest.raises(UserError, match=r"not a whole number of 4 x 4 patches"):
        init(DENSE, KEY, (9, 8, 3))
    with pytest.raises(UserError, match=r"not a whole number of 4 x 4 patches"):
        init(DENSE, KEY, (0, 0, 3))
