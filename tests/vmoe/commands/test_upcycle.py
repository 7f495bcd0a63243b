"""`vmoe upcycle` and fine-tuning by config: through the command, from file to file."""

import jax
import numpy as np
import pytest

from vmoe.checkpoint import Checkpoints
from vmoe.cli import main
from vmoe.model import init
from vmoe.overrides import load
from vmoe.use.trained import load_trained
from vmoe.weights import files
from vmoe.weights.leaf import flat, leaf_of

SMALL = [
    "--config.model.depth=2", "--config.model.width=8", "--config.model.mlp_dim=8",
    "--config.model.patch_size=4", "--config.steps=1", "--config.optim.schedule.warmup_steps=0",
]  # fmt: skip
SPARSE = [
    "--config=upcycle_digits", *SMALL, "--config.model.moe.layers=(1,)",
    "--config.init_from.moments=False",
    # This one is found first, and says what the standard rule would.
    "--config.init_from.rules=({'pattern': '_1/Mlp', 'path': '_1/Moe/Mlp', "
    "'transform': 'expand_tile', 'arguments': (0, 8)},)",
]  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> str:
    """Random weights of the small dense model."""
    config = load("dense_digits", SMALL)
    shapes = jax.eval_shape(lambda: init(config.model, jax.random.key(0), (8, 8, 1)))
    rng = np.random.default_rng(0)
    arrays = {path: rng.random(leaf.shape, np.float32) for path, leaf in flat(shapes).items()}
    file = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    files.write(file, {path: leaf_of(array) for path, array in arrays.items()})
    return str(file)


def test_upcycle_writes_a_run_before_its_first_step(dense, tmp_path, capsys):
    out = str(tmp_path / "run")
    command = ["upcycle", f"--from={dense}", f"--out={out}", *SPARSE]
    assert main(command) == 0
    assert f"wrote {out}; vmoe train --config=upcycle_digits" in capsys.readouterr().out
    experts = files.read(out).leaves["params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"].read()
    theirs = files.read(dense).leaves["Encoder/encoderblock_1/Mlp/Dense_0/kernel"].read()
    np.testing.assert_array_equal(experts, np.stack([theirs] * 8))
    assert Checkpoints(out).steps() == [0]
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["upcycle", f"--from={out}", f"--out={tmp_path / 'again'}", *SPARSE]) == 2
    assert "it is sparse already: it has Encoder/encoderblock_1/Moe/" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_training_starts_from_the_checkpoint_once(dense, tmp_path, capsys):
    out = str(tmp_path / "run")
    command = ["train", "--config=dense_digits", *SMALL, f"--workdir={out}"]
    command.append(f"--config.init_from.path={dense}")
    assert main(command) == 0
    assert f"starts from {dense} (safetensors): " in capsys.readouterr().out
    assert main(command) == 0
    assert "starts from" not in (again := capsys.readouterr().out)
    assert f"resumed {out} at step 1" in again


def test_a_checkpoint_becomes_a_run_that_can_be_trained(dense, tmp_path, capsys):
    """Without its data: --image says the shape, and training begins with the first images."""
    out, flags = str(tmp_path / "run"), ["--config=dense_digits", *SMALL]
    assert main(["convert", dense, out, *flags, "--image=8x8x1"]) == 0
    assert f"wrote {out}; vmoe evaluate --workdir={out} evaluates it" in capsys.readouterr().out
    trained = load_trained(out)
    assert (trained.step, trained.image_shape) == (0, (8, 8, 1))
    theirs = files.read(dense).leaves
    ours = flat(trained.params)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], leaf.read()) for path, leaf in theirs.items())
    assert main(["train", f"--workdir={out}", *flags]) == 0
    assert f"resumed {out} at step 0" in capsys.readouterr().out


@pytest.mark.nightly
def test_an_upcycled_run_is_trained(dense, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["upcycle", f"--from={dense}", f"--out={out}", *SPARSE]) == 0
    assert main(["train", f"--workdir={out}", *SPARSE]) == 0
    assert f"resumed {out} at step 0" in capsys.readouterr().out
    assert Checkpoints(out).steps() == [0, 1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["upcycle", "--config=demo"], "--from is missing"),
        (["upcycle", "--from=DENSE", "--config=dense_digits"], "no MoE blocks to upcycle to"),
        (["upcycle", "--from=no", "--config=demo"], "checkpoint no does not exist"),
        (["upcycle", "--from=DENSE", "--config=demo", "--out=a.npz"], "--image is missing"),
        (["upcycle", "--from=DENSE", "--config=demo", "--out=a.npz", "--image=x"], "is no size"),
        (["convert", "DENSE", "run", *SPARSE, "--image=8x8x1"], "DENSE: the checkpoint has no"),
        (["train", "--config=dense_digits", *SMALL, "--config.init_from.path=DENSE",
          "--config.model.num_classes=12", "--workdir=run"],
         "DENSE: head/bias is [10] in the checkpoint and [12] in the model: it has 10 classes"),
        (["train", "--config=dense_digits", "--config.init_from.fresh=('(',)", "--workdir=run"],
         "is no regular expression"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags, message, dense, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([flag.replace("DENSE", dense) for flag in flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message.replace("DENSE", dense) in err
    assert not list(tmp_path.iterdir())
