"""Four recorded models of the released system: activations, logits, metrics, all gradients."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vmoe.vectors import MODELS, NOISY, TOLERANCE, load, paths, relative_error, tree
from vmoe.encoder import block_name, encoder_block
from vmoe.layers.norm import layer_norm
from vmoe.model import apply, embed, features, init
from vmoe.model_config import ModelConfig


@dataclass(frozen=True)
class Case:
    config: ModelConfig
    recorded: dict[str, np.ndarray]
    params: dict[str, Any]
    noise: list[dict[str, jax.Array]] | None

    @property
    def images(self) -> jax.Array:
        return jnp.asarray(self.recorded["images"])

    @property
    def mode(self) -> dict[str, Any]:
        return {"train": self.noise is not None, "moe_inputs": self.noise}


def make_case(name: str, form: str = "auto") -> Case:
    recorded = load(name)
    draws = sorted(path for path in recorded if path.startswith("noise_unit/"))
    noise = [{"noise": jnp.asarray(recorded[path])} for path in draws]
    config = MODELS[name]
    config = replace(config, moe=replace(config.moe, format=form))
    return Case(config, recorded, tree(recorded, "params"), noise or None)


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: name[:2])
def case(request) -> Case:
    return make_case(request.param)


def cross_entropy(name: str, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Per image, as the recorded runs were trained."""
    if name == "sigmoid":
        log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(labels * log_p + (1 - labels) * log_not_p).sum(-1)
    return -(labels * jax.nn.log_softmax(logits)).sum(-1)


def total_loss(case: Case, params: Any) -> tuple[jax.Array, Any]:
    logits, metrics = apply(case.config, params, case.images, **case.mode)
    name = "sigmoid" if case.noise else "softmax"
    main = cross_entropy(name, logits, jnp.asarray(case.recorded["labels"])).mean()
    return main + metrics["auxiliary_loss"].mean(), (main, logits, metrics)


@pytest.fixture(scope="module")
def run(case: Case) -> tuple[Any, Any, Any, Any, Any]:
    step = jax.jit(jax.value_and_grad(partial(total_loss, case), has_aux=True))
    (total, (main, logits, metrics)), gradients = step(case.params)
    return total, main, logits, metrics, gradients


def test_init_gives_the_recorded_tree(case):
    shapes = jax.eval_shape(lambda key: init(case.config, key, (16, 16, 3)), jax.random.key(0))
    ours = {path: leaf.shape for path, leaf in paths(shapes).items()}
    assert ours == {path: leaf.shape for path, leaf in paths(case.params).items()}


def test_logits_and_losses(case, run):
    total, main, logits, _, _ = run
    for name, ours in (("logits", logits), ("main_loss", main), ("total_loss", total)):
        assert relative_error(ours, case.recorded[name]) < TOLERANCE, name


def test_metrics(case, run):
    recorded, ours = paths(tree(case.recorded, "metrics")), paths(run[3])
    new = {path for path in ours.keys() - recorded.keys() if not path.startswith("rms/")}
    extra = {path.rpartition("/")[2] for path in new}
    assert recorded.keys() <= ours.keys()
    assert extra == {"load", "asked", "dropped", "gate_entropy"}
    for path, value in recorded.items():
        assert relative_error(ours[path], value) < TOLERANCE, path


def gradient_scale(recorded: dict[str, jax.Array], path: str) -> float:
    """What an error is relative to: the array's largest entry, with one exception.

    Softmax does not see a shift that all keys share, so the gradient of the key bias is zero
    without qk-norm, and what was recorded is rounding. It is held to the kernel's scale.
    """
    if path.endswith("key/bias") and path.replace("key/bias", "key_ln/scale") not in recorded:
        path = path.replace("bias", "kernel")
    return float(jnp.abs(recorded[path]).max())


def test_all_gradients(case, run):
    recorded, ours = paths(tree(case.recorded, "grads")), paths(run[4])
    assert recorded.keys() == ours.keys()
    errors = {
        path: relative_error(ours[path], value, gradient_scale(recorded, path))
        for path, value in recorded.items()
    }
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.get)


def test_activations(case):
    recorded = case.recorded
    x = embed(case.config, case.params, case.images)
    if case.config.position == "learned":
        assert relative_error(x, recorded["act/Encoder/posembed_input"]) < TOLERANCE
    encoder, noise = case.params["Encoder"], iter(case.noise or ())
    for i in range(case.config.depth):
        inputs = next(noise, None) if case.config.is_sparse(i) else None
        train = case.noise is not None
        x, _ = encoder_block(case.config, encoder[block_name(i)], x, train=train, inputs=inputs)
        assert relative_error(x, recorded[f"act/Encoder/encoderblock_{i}"]) < TOLERANCE
    x = layer_norm(encoder["encoder_norm"], x)
    assert relative_error(x, recorded["act/Encoder/encoder_norm"]) < TOLERANCE
    x, _ = features(case.config, case.params, case.images, **case.mode)
    before_tanh = recorded["act/pre_logits"]
    expected = np.tanh(before_tanh) if case.config.representation_size else before_tanh
    assert relative_error(x, expected) < TOLERANCE


@pytest.mark.parametrize("form", ["onehot", "slots", "sorted"])
def test_every_format_gives_the_noisy_model(form):
    case = make_case(NOISY, form)
    step = jax.jit(jax.value_and_grad(partial(total_loss, case), has_aux=True))
    (total, (_, logits, _)), gradients = step(case.params)
    assert relative_error(total, case.recorded["total_loss"]) < TOLERANCE
    assert relative_error(logits, case.recorded["logits"]) < TOLERANCE
    recorded = paths(tree(case.recorded, "grads"))
    for path, ours in paths(gradients).items():
        scale = gradient_scale(recorded, path)
        assert relative_error(ours, recorded[path], scale) < TOLERANCE, path
