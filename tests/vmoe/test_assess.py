"""The reports of `vmoe evaluate`, on a small untrained model: what they hold together."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.vmoe.tiny import CONFIG
from vmoe import model
from vmoe.assess import SETS, Subject, chosen_sets
from vmoe.config import AdversarialConfig, DataConfig
from vmoe.data.images import Images
from vmoe.data.views import Chosen, Fitted
from vmoe.errors import UserError
from vmoe.evaluate import evaluate
from vmoe.inference import Choices
from vmoe.model_config import RouterConfig
from vmoe.specialisation import class_information, evenness, expert_class_counts

RNG = np.random.default_rng(0)


def some(count: int) -> Images:
    """Images of which each class has a brightness of its own."""
    labels = RNG.integers(0, 10, count).astype(np.int32)
    pixels = RNG.normal(0, 0.1, (count, 8, 8, 1)) + labels[:, None, None, None] / 10 - 0.5
    return Images(pixels.astype(np.float32), labels, 10)


ROUTER = RouterConfig(name="ensemble", k=1)
MOE = replace(CONFIG.model.moe, layers=(0,), ensemble_size=2, router=ROUTER)
CONFIG = replace(
    CONFIG, model=replace(CONFIG.model, depth=1, moe=MOE),
    data=DataConfig(name="idx", path="elsewhere", batch_size=8, eval_batch_size=32),
    adversarial=AdversarialConfig(2, 0.2),
)  # fmt: skip
PARAMS = model.init(CONFIG.model, jax.random.key(0), (8, 8, 1))
SUBJECT = Subject(CONFIG, PARAMS, some(120), some(50))


def test_outputs_are_those_of_the_model_without_the_padding():
    out = SUBJECT.outputs
    assert out.members.shape == (50, 2, 10)
    np.testing.assert_array_equal(out.labels, SUBJECT.test.labels)
    report = evaluate(CONFIG, PARAMS, SUBJECT.test)
    np.testing.assert_allclose(out.accuracy, report.accuracy)
    loss = -np.log(out.p[np.arange(50), out.labels]).mean()
    np.testing.assert_allclose(loss, report.loss, rtol=1e-4)
    mean = np.log(np.exp(jax.nn.log_softmax(out.members)).mean(1))
    np.testing.assert_allclose(out.logits, mean, atol=1e-4)


@pytest.mark.parametrize(
    "name, lines",
    [
        ("calibration", ["calibration", "as it is", "temperature of the other half"]),
        ("ensemble", ["ensemble", "member 0", "member 1", "all together", "two members differ"]),
        ("ood", ["out of distribution", "demo"]),
        ("fewshot", ["few-shot linear", "1 shots", "5 shots", "10 shots", "25 shots"]),
        ("adversarial", ["adversarial", "before", "after"]),
        ("routing", ["routing", "encoderblock_0", "", "encoderblock_0, %", "class 0"]),
    ],
)
def test_a_report_is_a_table(name, lines):
    shown = SETS[name](SUBJECT).splitlines()
    for wanted, line in zip(lines, shown, strict=False):
        assert line.startswith(wanted)
    if name == "fewshot":  # by brightness; 10 by chance
        assert float(shown[4].split()[2].rstrip("%")) > 25
    if name == "adversarial":
        error = [float(line.split()[1].rstrip("%")) for line in shown[1:]]
        loss = [float(line.split()[2]) for line in shown[1:]]
        assert error[1] >= error[0]
        assert loss[1] > loss[0]
    if name == "routing":  # as evaluated: with the capacity, so that some are dropped
        entropy, dropped = shown[1].split()[1:3]
        assert dropped == f"{SUBJECT.report.dropped:.2%}" != "0.00%"
        assert 0 < float(entropy) < 1
    if name == "ood":
        assert 0 <= float(shown[1].split()[1]) <= 1


def test_corruptions_list_every_degree():
    shown = SETS["corruptions"](SUBJECT).splitlines()
    assert [line.split()[:2] for line in shown[1:]] == [
        [kind, str(degree)] for kind in ("noise", "blur") for degree in range(1, 6)
    ]


def test_what_is_served_is_counted_by_class():
    tokens = 5 * 2  # four patches and the class token, for two members with one choice each
    per_class = tokens * np.bincount(SUBJECT.test.labels, minlength=10)
    (room,) = expert_class_counts(CONFIG, PARAMS, SUBJECT.test, Choices(dropless=True)).values()
    np.testing.assert_array_equal(room.sum(1), per_class)
    (kept,) = expert_class_counts(CONFIG, PARAMS, SUBJECT.test).values()
    np.testing.assert_allclose(kept.sum(), (1 - SUBJECT.report.dropped) * per_class.sum())
    assert (kept.sum(1) <= per_class).all()
    np.testing.assert_allclose(kept.sum(0) / kept.sum(), SUBJECT.report.load["encoderblock_0"])


def test_evenness_and_information():
    assert evenness(np.ones((3, 4))) == 1
    assert evenness(np.array([[5.0, 0, 0, 0]])) == 0
    np.testing.assert_allclose(evenness(np.array([[1.0, 1, 0, 0]])), 0.5)
    np.testing.assert_allclose(class_information(np.ones((3, 4))), 0, atol=1e-12)
    np.testing.assert_allclose(class_information(np.eye(4)), 2)


def test_what_does_not_fit_the_model_is_refused():
    plain = Subject(replace(CONFIG, model=replace(CONFIG.model, moe=None)), None, some(9), some(9))
    with pytest.raises(UserError, match="a dense model has no experts; fix: evaluate without"):
        SETS["routing"](plain)
    still = replace(SUBJECT, config=replace(CONFIG, adversarial=AdversarialConfig()))
    with pytest.raises(UserError, match=r"adversarial.steps is 0; fix: --config.adversarial.steps"):
        SETS["adversarial"](still)
    own = replace(SUBJECT, config=replace(CONFIG, data=DataConfig()))
    with pytest.raises(UserError, match="the images of demo are the model's own; fix: --ood="):
        SETS["ood"](own)


def test_names_of_reports():
    assert chosen_sets("") == []
    assert chosen_sets("routing,ood") == ["routing", "ood"]
    assert set(chosen_sets("all")) <= set(SETS)
    with pytest.raises(UserError, match="--sets has rooting; fix: use some of calibration, ood"):
        chosen_sets("rooting")


def test_views():
    images = some(6)
    batch = Chosen(images, np.array([5, 0, 3])).batch(slice(1, 3))
    np.testing.assert_array_equal(batch["labels"], images.labels[[0, 3]])
    wide = Fitted(images, (-1.0, 1.0), (16, 12, 3), (0.0, 1.0))
    fitted = wide.batch(slice(0, 2))["images"]
    assert fitted.shape == (2, 16, 12, 3)
    np.testing.assert_array_equal(fitted[..., 0], fitted[..., 1])
    small = (np.clip(images.images[:2], -1, 1).mean((1, 2, 3)) + 1) / 2
    np.testing.assert_allclose(fitted.mean((1, 2, 3)), small, atol=0.02)
