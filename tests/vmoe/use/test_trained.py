"""A trained model is the one that was evaluated, whatever the way to name it."""

import itertools
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from vmoe.checkpoint import Checkpoints
from vmoe.cli import main
from vmoe.state import TrainState, init_state
from vmoe.use.trained import load_trained
from vmoe.workdir import ImagesKept, open_workdir, read_config, read_images_kept


def test_its_weights_are_those_that_were_evaluated(trained, workdir):
    """The running average, since the run keeps one."""
    like = jax.eval_shape(lambda: init_state(trained.config, trained.image_shape))
    state = TrainState(*Checkpoints(workdir).restore(tuple(like)).state)
    jax.tree.map(np.testing.assert_array_equal, trained.params, state.evaluated)
    heads = (trained.params["head"]["kernel"], state.params["head"]["kernel"])
    assert np.abs(heads[0] - heads[1]).max() > 0
    assert (trained.step, trained.image_shape) == (12, (8, 8, 1))
    assert read_images_kept(workdir) == ((8, 8, 1), ())


def test_a_run_keeps_the_names_of_its_classes(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    open_workdir(
        replace(read_config(workdir), workdir=str(tmp_path / "run")),
        ImagesKept((8, 8, 1), tuple("abcdefghij")),
    )
    assert load_trained(tmp_path / "run").class_names == tuple("abcdefghij")
    others = tuple("ABCDEFGHIJ")
    again = load_trained(tmp_path / "run", [f"--config.data.class_names={others}"])
    assert again.class_names == others


def test_one_checkpoint_of_a_run_by_its_path(workdir, capsys):
    earlier = load_trained(Checkpoints(workdir).path(8))
    assert earlier.step == 8
    assert capsys.readouterr().err == ""


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path / "run")
    newest = Checkpoints(tmp_path / "run").path(12)
    biggest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:-1])
    assert load_trained(tmp_path / "run").step == 8
    assert f"checkpoint {newest} is damaged" in capsys.readouterr().err


FOLDER = ["--config.data.name=folder", "--config.data.channels=1"]


def write_classes(folder, count):
    """An image for each class, a stroke at another height."""
    for split, n in itertools.product(("train", "test"), range(count)):
        (folder / split / str(n)).mkdir(parents=True)
        image = Image.new("L", (8, 8))
        image.putpixel((n % 8, n // 2), 255)
        image.save(folder / split / str(n) / "a.png")


def test_evaluate_on_a_folder_tells_of_images_that_cannot_be_read(workdir, tmp_path, capsys):
    write_classes(tmp_path, 10)
    (tmp_path / "test" / "3" / "a.png").write_bytes(b"no image")
    flags = ["evaluate", f"--workdir={workdir}", *FOLDER, f"--config.data.path={tmp_path}"]
    assert main(flags) == 1
    out, err = capsys.readouterr()
    assert "test/3/a.png cannot be read: no image of a known format; fix: replace it, or" in err
    assert (out, err.count("\n")) == ("", 1)
    assert main([*flags, "--config.data.corrupt=skip"]) == 0
    out, err = capsys.readouterr()
    assert "(9 images)" in out
    assert "1 test images could not be read and were skipped" in out
    assert err == f"skipped {tmp_path}/test/3/a.png: no image of a known format (1 so far)\n"


def test_a_run_that_has_saved_nothing_is_told(workdir, tmp_path, capsys):
    shutil.copy(workdir / "config.json", tmp_path)
    assert main(["export", f"--workdir={tmp_path}", f"--out={tmp_path}/m"]) == 2
    assert f"run {tmp_path} has saved no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.model.width=16"], "does not fit the config: Encoder/encoder_norm/bias is [8]"),
        (["--capacity=1,2"], "eval_capacity_factors has 2 entries for 1 MoE blocks"),
        (["--budget=much"], "--budget=much is no number"),
        (["--config.model.num_classes=2", "--config.data.name=npz", "--config.data.path=no"],
         "does not fit the config: head/bias is [10], not [2]"),
        (["--config.data.channels=3"], "the data's images are [8, 8, 3] and "),
        ([*FOLDER, "--config.data.path=FLOWERS"], "the data has 11 classes and "),
    ],
)  # fmt: skip
def test_evaluate_refuses_what_does_not_fit_in_one_line(flags, message, workdir, capsys, tmp_path):
    write_classes(tmp_path, 11)
    flags = [flag.replace("FLOWERS", str(tmp_path)) for flag in flags]
    assert main(["evaluate", f"--workdir={workdir}", *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_evaluate_with_choices(workdir, capsys):
    assert main(["evaluate", f"--workdir={workdir}", "--capacity=0.5", "--bpr"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"step 12 of {workdir}, capacity 0.5, batch priority"
    assert out[1].startswith("test accuracy")
