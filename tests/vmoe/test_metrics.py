"""Metrics: one record a step, also after an interruption; the progress line."""

import io
import json

import pytest

from vmoe.metrics import JSONL, MetricWriter, Progress, origin, read_jsonl


def write(workdir, start: int, steps: range) -> None:
    writer = MetricWriter(workdir, start)
    for step in steps:
        writer.write(step, "train", {"loss": float(step)})
    writer.close()


def test_records_are_read_back(tmp_path):
    write(tmp_path, 0, range(1, 4))
    assert list(read_jsonl(tmp_path / JSONL)) == [
        {"step": step, "kind": "train", "loss": float(step)} for step in (1, 2, 3)
    ]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    write(tmp_path, 0, range(1, 8))
    write(tmp_path, 4, range(5, 10))
    assert [r["step"] for r in read_jsonl(tmp_path / JSONL)] == list(range(1, 10))


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    write(tmp_path, 0, range(1, 4))
    path = tmp_path / JSONL
    path.write_text(path.read_text()[:-9])
    assert [r["step"] for r in read_jsonl(path)] == [1, 2]
    write(tmp_path, 3, range(4, 5))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 4]


def test_progress_on_a_file_is_one_line_a_call():
    out = io.StringIO()
    progress = Progress(10, 8, out)
    progress.show(5, {"loss": 1.25, "auxiliary_loss": 0.01, "accuracy": 0.5, "other": 1.0})
    progress.close()
    (line,) = out.getvalue().splitlines()
    assert line.startswith("step 5/10  ")
    assert line.endswith(" images/s  loss 1.2500  auxiliary 0.0100  accuracy 0.5000")
    assert progress.images_per_second > 0


def test_progress_on_a_terminal_is_drawn_over():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    progress = Progress(4, 8, out)
    progress.show(2, {"loss": 1.0})
    progress.show(4, {"loss": 0.5})
    progress.close()
    assert out.getvalue().count("\n") == 1
    assert f"\r[{'#' * 12}{'.' * 12}] step 2/4" in out.getvalue()


NAN, INF = float("nan"), float("inf")
FINE = {"loss": 1.0, "main_loss": 1.0, "accuracy": 0.5, "encoderblock_1/load": [0.5, 0.5]}


@pytest.mark.parametrize(
    "bad, where",
    [
        ({}, None),
        ({"rms/encoderblock_10": NAN, "rms/encoderblock_9": INF, "grad_norm/head": NAN},
         "the activations of encoderblock_9"),
        ({"rms/embedding": NAN, "rms/encoderblock_0": NAN}, "the activations of embedding"),
        ({"main_loss": INF, "loss": INF, "grad_norm/embedding": NAN}, "the activations of head"),
        ({"encoderblock_1/load_loss": -INF, "loss": NAN}, "encoderblock_1/load_loss"),
        ({"grad_norm": NAN, "grad_norm/encoderblock_2": NAN, "grad_norm/encoderblock_10": NAN,
          "grad_norm/embedding": NAN}, "the gradients of encoderblock_10"),
        ({"grad_norm": NAN, "grad_norm/encoderblock_2": NAN, "grad_norm/encoder_norm": NAN},
         "the gradients of encoder_norm"),
        ({"encoderblock_1/load": [0.5, NAN]}, "encoderblock_1/load"),
        ({"learning_rate": NAN}, "learning_rate"),
    ],
)  # fmt: skip
def test_the_first_layer_in_the_order_of_a_step_is_named(bad, where):
    assert origin(FINE | bad) == where
