"""One tiny run for all tests of what is done with a trained model."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.vmoe.tiny import CONFIG, in_workdir
from vmoe.train import train
from vmoe.use.trained import load_trained


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("use") / "run"
    optim = replace(CONFIG.optim, average_decay=0.5)
    train(in_workdir(folder, eval_every=6, optim=optim), io.StringIO())
    return folder


@pytest.fixture(scope="session")
def trained(workdir):
    return load_trained(workdir)


@pytest.fixture(scope="session")
def image_files(tmp_path_factory):
    """Three files: grey of the model's size, larger and in colour, cut short."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels[:8, :8, 0]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "colour.png")
    (folder / "cut.png").write_bytes((folder / "colour.png").read_bytes()[:-300])
    return folder
