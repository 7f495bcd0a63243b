"""E^3: the recorded model and losses, what repeats and regroups images, and training with it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vmoe import tiny
from tests.vmoe.test_model_vectors import gradient_scale
from tests.vmoe.vectors import BIAS, TOLERANCE, load, paths, relative_error, tree
from vmoe.data.images import Images
from vmoe.encoder import encoder_block
from vmoe.ensemble import average, repeat_images
from vmoe.errors import UserError
from vmoe.evaluate import evaluate
from vmoe.layers.attention import attention
from vmoe.layers.norm import layer_norm
from vmoe.losses import LOSSES, softmax_xent
from vmoe.model import apply, embed, init
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig
from vmoe.moe import group_tokens, init_moe, moe_block, ungroup_tokens
from vmoe.state import loss

ROUTER = RouterConfig(name="ensemble", k=1, capacity_factor=1.5)
CONFIG = ModelConfig(
    num_classes=10, patch_size=4, width=16, depth=6, mlp_dim=32, num_heads=2,
    head_bias_init=BIAS, representation_size=16,
    moe=MoEConfig(num_experts=8, layers=(3, 5), group_images=2, ensemble_size=2, router=ROUTER),
)  # fmt: skip
RECORDED = load("d1_eee_det")
PARAMS = tree(RECORDED, "params")
IMAGES, LABELS = jnp.asarray(RECORDED["images"]), jnp.asarray(RECORDED["labels"])


def total_loss(config, params):
    logits, metrics = apply(config, params, IMAGES)
    main = softmax_xent(logits, repeat_images(LABELS, config.ensemble_size)).mean()
    return main + metrics["auxiliary_loss"].mean(), (main, logits, metrics)


OTHERS = [pytest.param(form, marks=pytest.mark.nightly) for form in ("onehot", "sorted")]


@pytest.fixture(scope="module", params=["slots", *OTHERS])
def run(request):
    config = replace(CONFIG, moe=replace(CONFIG.moe, format=request.param))
    step = jax.jit(jax.value_and_grad(partial(total_loss, config), has_aux=True))
    (total, (main, logits, metrics)), gradients = step(PARAMS)
    return total, main, logits, metrics, gradients


def test_recorded_logits_and_losses(run, record_property):
    total, main, logits, _, _ = run
    together = average("softmax", logits, 2)
    ours = {
        "logits": logits, "main_loss": main, "total_loss": total,
        "eval_loss": softmax_xent(together, LABELS),
    }  # fmt: skip
    for name, value in ours.items():
        error = relative_error(value, RECORDED[name])
        record_property(name, error)
        assert error < TOLERANCE, name
    np.testing.assert_array_equal(jnp.argmax(together, -1), RECORDED["pred"])


def test_recorded_metrics(run):
    recorded, ours = paths(tree(RECORDED, "metrics")), paths(run[3])
    extra = {path.rpartition("/")[2] for path in ours.keys() - recorded.keys()}
    assert recorded.keys() <= ours.keys()
    assert extra == {"load", "asked", "dropped", "gate_entropy"}
    for path, value in recorded.items():
        assert relative_error(ours[path], value) < TOLERANCE, path


def test_all_recorded_gradients(run, record_property):
    recorded, ours = paths(tree(RECORDED, "grads")), paths(run[4])
    assert recorded.keys() == ours.keys()
    errors = {
        path: relative_error(ours[path], value, gradient_scale(recorded, path))
        for path, value in recorded.items()
    }
    record_property("gradients", max(errors.values()))
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.get)


def test_init_gives_the_recorded_tree():
    shapes = jax.eval_shape(lambda key: init(CONFIG, key, (16, 16, 3)), jax.random.key(0))
    ours = {path: leaf.shape for path, leaf in paths(shapes).items()}
    assert ours == {path: leaf.shape for path, leaf in paths(PARAMS).items()}


def test_tokens_reach_the_recorded_experts_in_the_recorded_order():
    """Position s of a group is the recorded one: it is sent to the same expert."""
    encoder, x = PARAMS["Encoder"], embed(CONFIG, PARAMS, IMAGES)
    for i in range(3):
        x, _ = encoder_block(CONFIG, encoder[f"encoderblock_{i}"], x)
    assert relative_error(x, RECORDED["act/Encoder/encoderblock_2"]) < TOLERANCE
    block, x = encoder["encoderblock_3"], repeat_images(x, 2)
    y = layer_norm(block["LayerNorm_0"], x)
    x = x + attention(block["SelfAttention"], y, y)
    tokens = group_tokens(layer_norm(block["LayerNorm_1"], x), groups=2, members=2)
    logits = jnp.einsum("gsd,dmq->gsmq", tokens, block["Moe"]["Router"]["dense"]["kernel"])
    member = jnp.arange(tokens.shape[1]) % 2
    own = jnp.take_along_axis(logits, member[None, :, None, None], axis=2)[:, :, 0]
    expert = member * 4 + jnp.argmax(own, -1)
    dispatched = RECORDED["act/Encoder/encoderblock_3/Moe/Router/dispatch_weights"].sum(-1)
    kept = dispatched.sum(-1) > 0
    np.testing.assert_array_equal(dispatched.argmax(-1)[kept], expert[kept])


# ---- losses of ensembles

LOSS_VECTORS = load("d4_ensemble_losses")


@pytest.mark.parametrize("name, labels", [("softmax", "labels"), ("sigmoid", "multilabels")])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_recorded_losses_and_predictions(members, name, labels, record_property):
    case = {
        n.removeprefix(f"M{members}/"): jnp.asarray(v)
        for n, v in LOSS_VECTORS.items()
        if n.startswith(f"M{members}/")
    }
    training = LOSSES[name](case["logits"], repeat_images(case[labels], members))
    together = average(name, case["logits"], members)
    evaluation = LOSSES[name](together, case[labels])
    errors = {
        "train": relative_error(training, case[f"{name}_train"]),
        "eval": relative_error(evaluation, case[f"{name}_eval"]),
    }
    for kind, error in errors.items():
        record_property(kind, error)
    assert max(errors.values()) < 2e-6
    np.testing.assert_array_equal(jnp.argmax(together, -1), case[f"pred_{name}"])


def test_average_stands_certain_members():
    logits = jnp.asarray([[200.0, 0.0], [0.0, 200.0]])
    np.testing.assert_allclose(average("softmax", logits, 2), np.log([[0.5, 0.5]]), rtol=1e-6)
    np.testing.assert_allclose(average("sigmoid", logits - 100.0, 2), [[0.0, 0.0]], atol=1e-5)


# ---- images and tokens in order

MOE = replace(CONFIG.moe, num_experts=4, router=replace(ROUTER, capacity_factor=8.0))
WIDTH, TOKENS = 8, 3


def test_grouping_and_back():
    x = jnp.arange(2 * 2 * 3).reshape(4, 3)  # 2 images, 2 members, 3 tokens
    grouped = group_tokens(x, groups=2, members=2)
    np.testing.assert_array_equal(grouped, [[0, 3, 1, 4, 2, 5], [6, 9, 7, 10, 8, 11]])
    np.testing.assert_array_equal(ungroup_tokens(grouped, x.shape, 2), x)


def test_a_member_sees_only_its_own_experts_and_copies():
    params = init_moe(jax.random.key(0), MOE, WIDTH, 6)
    x = jax.random.normal(jax.random.key(1), (2 * 2, TOKENS, WIDTH))
    y, aux = moe_block(MOE, params, x)
    np.testing.assert_array_equal(aux["load"].sum(-1), 2 * 2 * TOKENS)
    single = replace(MOE, num_experts=2, ensemble_size=1, router=replace(ROUTER, capacity_factor=8))
    for m in range(2):
        own = {
            "Router": {"dense": {"kernel": params["Router"]["dense"]["kernel"][:, m : m + 1]}},
            "Mlp": jax.tree.map(lambda a, m=m: a[2 * m : 2 * m + 2], params["Mlp"]),
        }
        alone, _ = moe_block(single, own, x[m::2])
        np.testing.assert_allclose(y[m::2], alone, rtol=1e-5, atol=1e-6)


def test_padding_images_take_no_slot():
    params = init_moe(jax.random.key(0), MOE, WIDTH, 6)
    x = jax.random.normal(jax.random.key(1), (2 * 2, TOKENS, WIDTH))
    y, aux = moe_block(MOE, params, x, mask=jnp.array([True, True, False, False]))
    np.testing.assert_array_equal(y[2:], 0.0)
    np.testing.assert_array_equal(aux["load"].sum(-1), 2 * TOKENS)


# ---- training, evaluation, settings

TINY = replace(
    tiny.CONFIG,
    model=replace(
        tiny.CONFIG.model, dropout=0.0,
        moe=replace(tiny.CONFIG.model.moe, ensemble_size=2, router=replace(ROUTER, noise_std=0.0)),
    ),
)  # fmt: skip
TINY_PARAMS = init(TINY.model, jax.random.key(0), (8, 8, 1))


def digits(count):
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)
    return Images(pixels, rng.integers(0, 10, count).astype(np.int32), 10)


def test_every_member_learns_from_every_label():
    images = digits(8)
    batch = {"images": jnp.asarray(images.images), "labels": jnp.asarray(images.labels)}
    _, (metrics, _) = loss(TINY, TINY_PARAMS, batch, jax.random.key(2))
    logits, routing = apply(TINY.model, TINY_PARAMS, batch["images"], train=True)
    assert logits.shape == (16, 10)
    wanted = np.repeat(images.labels, 2)
    xent = -jax.nn.log_softmax(logits)[np.arange(16), wanted].mean()
    np.testing.assert_allclose(metrics["main_loss"], xent, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(np.argmax(logits, -1) == wanted))
    np.testing.assert_allclose(
        metrics["auxiliary_loss"], routing["auxiliary_loss"].mean(), rtol=1e-5
    )
    assert routing["auxiliary_loss"].shape == (2, 2)


def test_evaluation_averages_the_members():
    images = digits(8)
    config = replace(TINY, data=replace(TINY.data, eval_batch_size=8))
    report = evaluate(config, TINY_PARAMS, images)
    logits, routing = apply(TINY.model, TINY_PARAMS, jnp.asarray(images.images))
    mean = jax.nn.softmax(logits).reshape(8, 2, 10).mean(1)
    np.testing.assert_allclose(report.accuracy, np.mean(mean.argmax(-1) == images.labels))
    np.testing.assert_allclose(report.loss, -np.log(mean[np.arange(8), images.labels]).mean(), 1e-5)
    kept = float(routing["encoderblock_1"]["load"].sum())
    np.testing.assert_allclose(report.dropped, 1 - kept / (8 * 2 * 5), atol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ensemble_size": 3}, r"num_experts=8 cannot be shared out evenly .*ensemble_size=3"),
        ({"ensemble_size": 0}, r"moe.ensemble_size=0 must be a whole number"),
        ({"router": RouterConfig()}, r'ensemble_size=2 .* fix: moe.router.name="ensemble"'),
        (
            {"router": replace(ROUTER, k=5)},
            r"k=5 is more than .* moe.ensemble_size=4; fix: pick k <= 4",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, moe=replace(CONFIG.moe, **changes)).validate()
