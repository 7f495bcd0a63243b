"""`vmoe export`: one file, any batch size, jax alone; the loader is the one of docs/use.md."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from moegen.tune import formats
from moegen.tune.cost import Cost
from vmoe.cli import main
from vmoe.inference import Choices, predict, run
from vmoe.moe import compiled_layer
from vmoe.use.export import exported

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


def in_jax_alone(folder, *runs):
    """What the loader makes of each (program, file, pixels), all in one process without vmoe."""
    lines = []
    for number, (program, file, pixels) in enumerate(runs):
        np.save(folder / f"{number}.in.npy", pixels)
        arguments = ["load.py", str(file), f"{number}.in.npy", f"{number}.out.npy"]
        lines.append(f"import sys\nsys.argv = {arguments}\n{program}")
    (folder / "load.py").write_text("\n".join(lines) + ONLY_JAX)
    done = subprocess.run(
        [sys.executable, folder / "load.py"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [np.load(folder / f"{number}.out.npy") for number in range(len(runs))]


def predicted(trained, pixels, choices):
    """As two groups of 4 images, padded."""
    count = len(pixels)
    images = np.zeros((8, *pixels.shape[1:]), np.float32)
    images[:count] = pixels.astype(np.float32) * (2 / 255) - 1
    mask = np.arange(8) < count
    logits, _ = predict(trained.config.model, trained.params, images, choices, mask=mask)
    return jax.nn.softmax(logits)[:count]


def test_jax_alone_predicts_the_same_for_any_batch_size_and_budget(
    trained, workdir, file, tmp_path, capsys
):
    """6 images leave a group half empty; one file serves two budgets."""
    flags = [f"--workdir={workdir}", f"--out={tmp_path / 'budget.jax'}", "--budget=input"]
    assert main(["export", *flags]) == 0
    assert "takes u8[b, 8, 8, 1] and budget f32[], gives" in capsys.readouterr().out
    pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    low, some = Choices(capacity=0.5, batch_priority=True), (0.3, 0.9)
    with_budget = loader().replace(
        "probabilities = jax.jit(model.call)(images)",
        f"call = jax.jit(model.call)\nprobabilities = np.stack([call(images, b) for b in {some}])",
    )
    one, six, budgets = in_jax_alone(
        tmp_path,
        (loader(), file, pixels[:1]),
        (loader(), file, pixels),
        (with_budget, "budget.jax", pixels[:4]),
    )
    wanted = [predicted(trained, pixels[:4], Choices(budget=b)) for b in some]
    for found, right in (
        (one, predicted(trained, pixels[:1], low)),
        (six, predicted(trained, pixels, low)),
        (budgets, np.stack(wanted)),
    ):
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-6)
    assert np.abs(budgets[0] - budgets[1]).max() > 1e-3  # or the budget would say nothing


def test_the_file_has_no_code_for_this_machine_alone(trained, custom_call, monkeypatch):
    """Here the custom call is the cheapest by far; jax.export refuses it, were it taken."""

    def cost(program, target):
        return Cost(0, 0, not any(op.attr.get("kernel") == "native" for op in program.ops))

    monkeypatch.setattr(formats, "program_cost", cost)
    compiled_layer.cache_clear()
    model, choices = trained.config.model, Choices(dropless=True)
    pixels = jax.ShapeDtypeStruct((4, 8, 8, 1), "float32")
    here = jax.make_jaxpr(lambda images: run(model, choices, trained.params, images))(pixels)
    assert "ffi_call" in str(here)
    assert exported(trained, choices, ("cpu", "tpu"))
    compiled_layer.cache_clear()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workdir=RUN"], "--out is missing; fix: --out=FILE"),
        (["--workdir=RUN", "--out=no/where.jax"], "no is no folder; fix: make it first"),
        (["--workdir=RUN", "--out=m.jax", "--platforms=abacus"], "--platforms has abacus; fix: s"),
        (["--workdir=RUN", "--out=m.jax", "--budget=7"], "--budget=7 is no share"),
        (["--workdir=RUN", "--out=m.jax", "--budget=input", "--skip=input"],
         "--budget and --skip exclude each other"),
        (["--workdir=nowhere", "--out=m.jax"], "nowhere/config.json cannot be read"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags, message, workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(flag.replace("RUN", str(workdir)) for flag in flags)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
