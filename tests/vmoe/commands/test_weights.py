"""`vmoe inspect` and `vmoe convert`, on the recorded checkpoints."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.vmoe.vectors import DATA
from vmoe.cli import main
from vmoe.weights import files

THREE = DATA / "g_checkpoints" / "three_shards" / "ckpt_5"


def test_inspect(capsys):
    assert main(["inspect", str(THREE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{THREE}  (released V-MoE)"
    rows = [line.split() for line in lines]
    kernel = "params/Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
    assert [kernel, "[4,", "8,", "12]", "float32", "1.5", "kB"] in rows
    assert ["step", "[]", "int32", "4", "B"] in rows
    assert lines[-3:] == [
        "14 arrays, 633 entries, 2.4 kB",
        "weights: 575, under params/",
        "encoderblock_1: 4 experts of 108 weights",
    ]


def test_inspect_does_not_read_the_data(tmp_path, capsys):
    for file in THREE.parent.iterdir():
        damage = file.read_bytes() if file.suffix == ".index" else bytes(file.stat().st_size)
        (tmp_path / file.name).write_bytes(damage)
    assert main(["inspect", str(tmp_path / "ckpt_5.index")]) == 0


def test_inspect_into_a_pipe_that_is_closed():
    command = f"import sys; from vmoe.cli import main; sys.exit(main(['inspect', '{THREE}']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", command], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_name_cannot_move_the_cursor(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **{"\x1b[2Jhead": np.ones(3)})
    assert main(["inspect", f"{tmp_path}/a.npz"]) == 0
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert "\\x1b[2Jhead  [3]  float64" in out


def test_convert_there_and_back(tmp_path, capsys):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.index"
    assert main(["convert", str(THREE), str(first), "--part=params"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {first}: 6 arrays, 2.3 kB, from released")
    assert main(["convert", str(first), str(second)]) == 0
    ours, theirs = files.read(second).leaves, files.part(files.read(THREE).leaves, "params/")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path].read(), theirs[path].read()) for path in theirs)


def test_convert_to_the_names_of_augreg(tmp_path):
    there, back = tmp_path / "a.npz", tmp_path / "b.npz"
    assert main(["convert", str(THREE), str(there), "--part=params", "--names=augreg"]) == 0
    assert "Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias" in files.read(there).leaves
    assert main(["convert", str(there), str(back), "--names=vmoe"]) == 0
    assert set(files.read(back).leaves) == set(files.part(files.read(THREE).leaves, "params/"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["inspect"], "inspect: CKPT is missing"),
        (["inspect", "nowhere.npz"], "checkpoint nowhere.npz does not exist"),
        (["inspect", "."], "checkpoint . is no checkpoint"),
        (["inspect", "/"], "checkpoint / is no checkpoint"),
        (["inspect", "a" * 300], "cannot be read: File name too long"),
        (["convert", str(THREE), "a" * 300 + ".npz"], "cannot be written: File name too long"),
        (["convert", str(THREE), "no/folder.npz"], "cannot be written: No such file or directory"),
        (["convert", str(THREE), f"{THREE}.index/a.npz"], "cannot be written: Not a directory"),
        (["convert", str(THREE)], "convert: DST is missing"),
        (["convert", str(THREE), "b.pt"], "cannot tell the format of b.pt"),
        (["convert", str(THREE), "b.npz", "--part=opt"], "nothing under opt/; fix: --part= one of"),
        (["convert", str(THREE), "b.npz", "--names=timm"], "no names 'timm'; fix: use one of vmoe"),
        (["convert", str(THREE), str(THREE) + ".index"], "is there already"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    flags, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
