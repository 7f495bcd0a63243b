"""The dense layers: recorded primitives, shapes, initial statistics, dropout, errors."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vmoe.vectors import DATA, load, paths, relative_error, tree
from vmoe.errors import UserError
from vmoe.layers.attention import attention, init_attention
from vmoe.layers.dense import dense, init_dense
from vmoe.layers.dropout import dropout
from vmoe.layers.heads import init_map_head, map_head, pool
from vmoe.layers.mlp import gelu, init_mlp, mlp
from vmoe.layers.norm import init_layer_norm, layer_norm
from vmoe.layers.params import lecun_normal, named_key
from vmoe.layers.patches import init_patch_embedding, patch_embedding, patch_grid
from vmoe.layers.positions import init_learned_positions, learned_positions, sincos2d
from vmoe.model import init
from vmoe.model_config import ModelConfig, MoEConfig

KEY = jax.random.key(0)
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def recorded():
    return load("x6_primitives")


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(7), shape)


# ---- recorded primitives


def test_gelu_as_recorded(recorded):
    assert relative_error(gelu(recorded["x"]), recorded["gelu_tanh"]) < TOLERANCE


def test_layer_norm_as_recorded(recorded):
    params = {"scale": recorded["ln_scale"], "bias": recorded["ln_bias"]}
    assert relative_error(layer_norm(params, recorded["x"]), recorded["ln"]) < TOLERANCE


def test_layer_norm_epsilon():
    """Where the variance equals 1e-6, the released system's epsilon, half of it is left."""
    y = layer_norm(init_layer_norm(2), jnp.array([-1e-3, 1e-3]))
    np.testing.assert_allclose(y, [-math.sqrt(0.5), math.sqrt(0.5)], rtol=1e-5)


@pytest.mark.parametrize("name", ["mha", "mha_qk"])
def test_attention_as_recorded(recorded, name):
    params, x = tree(recorded, name), jnp.asarray(recorded["x"])
    assert ("query_ln" in params) == (name == "mha_qk")
    assert relative_error(attention(params, x, x), recorded[f"{name}_out"]) < TOLERANCE


# ---- initial statistics of a whole model against the released system's


def test_initial_statistics_as_recorded():
    stats = json.loads((DATA / "x7_init_stats.json").read_text())["stats"]
    config = ModelConfig(
        width=64, depth=2, mlp_dim=128, num_heads=2, representation_size=16,
        head_bias_init=-math.log(10), head_zero_init=True,
        moe=MoEConfig(num_experts=4, layers=(1,)),
    )  # fmt: skip
    ours = paths(jax.jit(lambda key: init(config, key, (16, 16, 3)))(KEY))
    assert ours.keys() == stats.keys()
    for path, (mean, std, low, high, shape) in stats.items():
        values = np.asarray(ours[path], np.float64)
        assert values.shape == tuple(shape), path
        # Twice five standard errors: the recorded sample deviates too.
        error = 10 / math.sqrt(values.size)
        assert abs(values.mean() - mean) <= error * std + 1e-7 * abs(mean), path
        assert abs(values.std() - std) <= error * std, path
        if path.endswith("kernel"):  # uniform or truncated: both have ends
            np.testing.assert_allclose((values.min(), values.max()), (low, high), rtol=0.1)


@pytest.mark.parametrize("path", ["query", "key", "value", "out"])
def test_attention_kernels_count_all_heads_as_features(path):
    kernel = init_attention(KEY, 64, 4)[path]["kernel"]
    bound = math.sqrt(6 / (64 + 64))
    assert 0.98 * bound < float(jnp.abs(kernel).max()) <= bound


# ---- dense


def test_dense_contracts_several_dims():
    params = init_dense(KEY, (2, 3), (4, 5), lecun_normal)
    params["bias"] = normal(4, 5)
    x = normal(7, 2, 3)
    expected = np.einsum("nab,abcd->ncd", x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(dense(params, x, dims=2), expected, rtol=1e-5, atol=1e-6)


def test_layers_keep_bf16_with_f32_parameters():
    x = normal(2, 5, 8).astype(jnp.bfloat16)
    attends = init_attention(KEY, 8, 2, qk_norm=True)
    layers = {
        "mlp": lambda x: mlp(init_mlp(KEY, 8, 16), x),
        "norm": lambda x: layer_norm(init_layer_norm(8), x),
        "attention": lambda x: attention(attends, x, x),
        "map": lambda x: map_head(init_map_head(KEY, 8, 2, 16), x),
    }
    for name, layer in layers.items():
        layer = jax.jit(layer)
        coarse, fine = layer(x), layer(x.astype(jnp.float32))
        assert coarse.dtype == jnp.bfloat16, name
        assert fine.dtype == jnp.float32, name
        assert relative_error(coarse.astype(jnp.float32), fine) < 0.03, name


def test_layer_norm_statistics_are_f32():
    """A large common offset would drown the signal in bf16 sums."""
    x = (256.0 + normal(4, 64)).astype(jnp.bfloat16)
    y = layer_norm(init_layer_norm(64), x).astype(jnp.float32)
    assert float(jnp.abs(y.mean(-1)).max()) < 0.01
    np.testing.assert_allclose(y.std(-1), 1.0, atol=0.01)


# ---- keys


def test_a_key_depends_on_the_name():
    a, b = (jax.random.key_data(named_key(KEY, name)) for name in ("a", "b"))
    assert not np.array_equal(a, b)
    assert named_key(None, "a") is None


# ---- dropout


def test_dropout_keeps_the_mean_and_its_share():
    y = np.asarray(dropout(jnp.ones((100, 1000)), 0.25, KEY))
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.01


def test_dropout_is_the_identity_without_key_or_rate():
    x = normal(3, 4)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, KEY) is x


def test_dropout_of_attention_weights_differs_between_examples():
    x = jnp.broadcast_to(normal(1, 6, 8), (2, 6, 8))
    params = init_attention(KEY, 8, 2)
    plain = attention(params, x, x)
    dropped = attention(params, x, x, rate=0.5, key=KEY)
    np.testing.assert_array_equal(plain[0], plain[1])
    assert not np.allclose(dropped[0], dropped[1])
    np.testing.assert_array_equal(dropped, attention(params, x, x, rate=0.5, key=KEY))


def test_mlp_dropout_acts_on_hidden_and_output():
    params, x = init_mlp(KEY, 8, 16), normal(64, 8)
    y = mlp(params, x, rate=0.5, key=KEY)
    kept = y != 0
    assert 0.35 < float(kept.mean()) < 0.65
    # Scaled by 2 at the output, and different from the plain MLP because of the hidden layer.
    assert not np.allclose(y[kept], 2 * mlp(params, x)[kept], rtol=1e-3)


# ---- patches and positions


def test_patches_are_the_strided_convolution():
    params = init_patch_embedding(KEY, 4, 3, 8)
    params["bias"] = normal(8)
    images = normal(2, 8, 12, 3)
    conv = jax.lax.conv_general_dilated(
        images, params["kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    ours = patch_embedding(params, images)
    assert ours.shape == (2, 2, 3, 8)
    np.testing.assert_allclose(ours, conv + params["bias"], rtol=1e-4, atol=1e-5)


def test_an_image_of_broken_patches_names_the_nearest_size():
    with pytest.raises(UserError, match=r"30 x 28 pixels .* 7 x 7 patches; fix: .* 28 x 28"):
        patch_grid(30, 28, 7)
    assert patch_grid(28, 35, 7) == (4, 5)


def test_channels_must_be_those_of_init():
    params = init_patch_embedding(KEY, 4, 3, 8)
    with pytest.raises(UserError, match=r"1 channels, the model was initialised for 3; fix"):
        patch_embedding(params, normal(2, 8, 8, 1))


def test_learned_positions_must_fit():
    params = init_learned_positions(KEY, 5, 8)
    np.testing.assert_array_equal(
        learned_positions(params, jnp.zeros((2, 5, 8)))[1], params["pos_embedding"][0]
    )
    with pytest.raises(UserError, match=r"gives 6 tokens, the position embedding has 5; fix"):
        learned_positions(params, jnp.zeros((2, 6, 8)))


def test_sincos2d_by_hand():
    """Rows 2, columns 3, width 8: two frequencies, 1 and 1/10000; x varies fastest."""
    table = np.asarray(sincos2d(2, 3, 8))
    assert table.shape == (6, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                f(p * w) for p in (column, row) for f in (math.sin, math.cos) for w in (1, 1e-4)
            ]
            np.testing.assert_allclose(table[3 * row + column], expected, atol=1e-6)


# ---- heads


def test_token_and_mean_pooling():
    x = normal(2, 5, 8)
    np.testing.assert_array_equal(pool("token", {}, x), x[:, 0])
    np.testing.assert_allclose(pool("gap", {}, x), np.mean(x, axis=1), rtol=1e-5, atol=1e-6)


def test_attention_pooling_ignores_the_order_of_tokens_but_not_their_values():
    params = {"MapHead": init_map_head(KEY, 8, 2, 16)}
    x = normal(2, 5, 8)
    pooled = pool("map", params, x)
    assert pooled.shape == (2, 8)
    np.testing.assert_allclose(pool("map", params, x[:, ::-1]), pooled, rtol=1e-4, atol=1e-5)
    assert not np.allclose(pool("map", params, 2 * x), pooled, rtol=1e-2)


def test_attention_pooling_by_hand():
    """One head, one feature per step written out: probe attends, then x + MLP(LN x)."""
    params = init_map_head(KEY, 4, 1, 8)
    x = normal(3, 5, 4)
    mha = params["MultiHeadDotProductAttention"]
    inputs = {"query": params["probe"], "key": x, "value": x}
    q, k, v = (inputs[name] @ mha[name]["kernel"][:, 0] for name in inputs)
    weights = jax.nn.softmax(jnp.einsum("ijd,btd->bt", q, k) / 2.0)
    z = jnp.einsum("bt,btd->bd", weights, v) @ mha["out"]["kernel"][0]
    expected = z + mlp(params["Mlp"], layer_norm(params["LayerNorm"], z))
    np.testing.assert_allclose(map_head(params, x), expected, rtol=1e-5, atol=1e-6)
