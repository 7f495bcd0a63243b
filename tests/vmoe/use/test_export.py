"""`vmoe export`: one file, any batch size, jax alone; the loader is the one of docs/use.md."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vmoe.cli import main
from vmoe.inference import Choices
from vmoe.use.classify import classify

DOCS = Path(__file__).parents[3] / "docs" / "use.md"
ONLY_JAX = """
import sys
others = {name.partition(".")[0] for name in sys.modules} & {"vmoe", "moegen", "optax", "orbax"}
assert not others, others
"""


def loader() -> str:
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len(program.splitlines()) <= 12
    return program


@pytest.fixture(scope="module")
def file(workdir, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.jax"
    flags = [f"--workdir={workdir}", f"--out={path}", "--capacity=0.5", "--bpr"]
    assert main(["export", *flags]) == 0
    return path


def test_jax_alone_predicts_the_same_for_any_batch_size(trained, file, tmp_path):
    """Groups are of 4 images: 6 leave a group half empty."""
    pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    (tmp_path / "load.py").write_text(loader() + ONLY_JAX)
    images = [pixel.astype(np.float32) * (2 / 255) - 1 for pixel in pixels]
    for count in (1, 6):
        np.save(tmp_path / "in.npy", pixels[:count])
        done = subprocess.run(
            [sys.executable, tmp_path / "load.py", file, tmp_path / "in.npy", tmp_path / "out.npy"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = np.load(tmp_path / "out.npy")
        choices = Choices(capacity=0.5, batch_priority=True)
        groups = [images[start : min(start + 4, count)] for start in range(0, count, 4)]
        wanted = [p.probabilities for group in groups for p in classify(trained, group, choices)]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workdir=RUN"], "--out is missing; fix: --out=FILE"),
        (["--workdir=RUN", "--out=no/where.jax"], "no is no folder; fix: make it first"),
        (["--workdir=RUN", "--out=m.jax", "--platforms=abacus"], "--platforms has abacus; fix: s"),
        (["--workdir=RUN", "--out=m.jax", "--budget=7"], "--budget=7 is no share"),
        (["--workdir=nowhere", "--out=m.jax"], "nowhere/config.json cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags, message, workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(flag.replace("RUN", str(workdir)) for flag in flags)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
