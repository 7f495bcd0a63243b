"""`vmoe predict`: classes, the experts of the patches, files of any size; mistakes in one line."""

import xml.etree.ElementTree as ET

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe.assignment import read_experts
from vmoe.cli import main
from vmoe.data import pipeline
from vmoe.data.images import BACKGROUND
from vmoe.inference import Choices, predict
from vmoe.use.classify import classify
from vmoe.use.files import read_image
from vmoe.use.grid import experts_of

BLOCK = "encoderblock_1"
CHOICES = Choices(capacity=0.5, batch_priority=True)


@pytest.fixture(scope="module")
def test_images(trained):
    return pipeline.load(trained.config.data)[1].images[:8]


def test_the_experts_of_a_token_are_those_that_served_it(trained, test_images):
    """As many as the router's report counts for each expert and group, weighted by its gate."""
    model = trained.config.model
    _, metrics = predict(model, trained.params, test_images, CHOICES)
    weights = read_experts(model, CHOICES, trained.params, jnp.asarray(test_images))[BLOCK]
    seen = np.asarray(weights).reshape(2, -1, 4) > 0
    np.testing.assert_array_equal(seen.sum(1), metrics[BLOCK]["load"])
    assert float(metrics[BLOCK]["dropped"].min()) > 0  # so that some tokens saw fewer than two
    assert float(weights.max()) <= 1


def test_experts_in_order_of_weight():
    weights = np.array([[0, 0.3, 0, 0.6], [0, 0, 0, 0], [0.1, 0.2, 0.05, 0.4]])
    assert experts_of(weights) == [[3, 1], [], [3, 1, 0, 2]]


def test_independent_predictions_equal_those_made_in_a_batch(trained, test_images):
    choices = Choices(budget=0.5, independent=True)  # those of the command below
    one_by_one = list(classify(trained, list(test_images[:3]), choices))
    logits, _ = predict(trained.config.model, trained.params, test_images[:3], choices)
    for says, line in zip(one_by_one, np.asarray(logits), strict=True):
        np.testing.assert_allclose(says.probabilities.sum(), 1, rtol=1e-6)
        assert np.argmax(says.probabilities) == np.argmax(line)
        assert says.experts[BLOCK].shape == (1, 5, 4)


def test_an_image_is_read_as_the_model_takes_it(trained, image_files):
    data = trained.config.data
    grey = read_image(image_files / "grey.png", (8, 8, 1), data)
    assert (grey.shape, grey.dtype) == ((8, 8, 1), np.float32)
    assert BACKGROUND <= grey.min() < grey.max() <= 1
    assert read_image(image_files / "colour.png", (8, 8, 1), data).shape == (8, 8, 1)
    assert read_image(image_files / "colour.png", (6, 4, 3), data).shape == (6, 4, 3)


def test_the_command(workdir, image_files, tmp_path, capsys):
    files = [str(image_files / name) for name in ("grey.png", "colour.png")]
    flags = [f"--workdir={workdir}", "--budget=0.5", "--top=2", f"--out={tmp_path / 'drawn'}"]
    assert main(["predict", *files, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("budget 0.5, each image by itself")
    assert lines[2].startswith(f"{files[0]}  ")
    assert [line.split()[0] for line in lines[3:5]] == ["class", "class"]
    assert lines[5].startswith(f"experts of each patch, {BLOCK}; class token ")
    cells = " ".join(lines[6:8]).split()
    token = lines[5].split()[-1]
    assert len(cells) == 4
    assert sum(cell != "." for cell in [*cells, token]) == 3  # ceil of half of 5 tokens
    drawing = ET.parse(tmp_path / "drawn" / "grey.experts.svg")
    tag = "{http://www.w3.org/2000/svg}"
    assert len(drawing.findall(f".//{tag}image")) == 2
    assert len([r for r in drawing.iter(f"{tag}rect") if r.get("fill-opacity")]) == 4


def test_the_command_names_classes_that_have_names(workdir, image_files, capsys):
    names = ",".join(repr(f"digit {n}") for n in range(10))
    flags = [f"--workdir={workdir}", f"--config.data.class_names=({names})", "--top=10"]
    assert main(["predict", str(image_files / "grey.png"), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()[3:13]
    assert sorted(line.rpartition("  ")[0].strip() for line in lines) == [
        f"digit {n}" for n in range(10)
    ]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workdir=nowhere", "{}/grey.png"], "nowhere/config.json cannot be read"),
        (["{}/grey.png"], "--workdir is missing"),
        (["--workdir=RUN"], "IMAGE... is missing"),
        (["--workdir=RUN", "{}/no.png"], "no.png cannot be read: No such file"),
        (["--workdir=RUN", "{}/cut.png"], "cut.png is no image that can be decoded"),
        (["--workdir=RUN", "--top=0", "{}/grey.png"], "--top=0 leaves no class to show"),
        (["--workdir=RUN", "--k=two", "{}/grey.png"], "--k=two is no number"),
        (["--workdir=RUN", "--k=1.5", "{}/grey.png"], "--k=1.5 is no whole number"),
        (["--workdir=RUN", "--k=9", "{}/grey.png"], "k=9 is more than moe.num_experts=4"),
        (["--workdir=RUN", "--out={}/grey.png", "{}/grey.png"], "grey.png is no folder"),
        (["--workdir=RUN", "--config.model.width=16", "{}/grey.png"],
         "does not fit the config: Encoder/encoder_norm/bias is [8], not [16]"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags, message, workdir, image_files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    given = [flag.replace("RUN", str(workdir)).format(image_files) for flag in flags]
    assert main(["predict", *given]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
