"""Where numbers go: a JSONL file, TensorBoard, and one line for the person watching."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

JSONL = "metrics.jsonl"


class MetricWriter:
    """Writes scalars of a step to metrics.jsonl and TensorBoard event files in a workdir.

    Opened at step n, it first drops what an interrupted run had written past n, so that each
    step is there once.
    """

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        workdir.mkdir(parents=True, exist_ok=True)
        self._drop_after(workdir / JSONL, step)
        self._file = (workdir / JSONL).open("a", encoding="utf-8")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, values: Mapping[str, float | list[float]]) -> None:
        """Adds {"step": step, "kind": kind, **values}; kind is "train" or "eval".

        Lists, such as an expert's share of the load each, go to the JSONL file only.
        """
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if not isinstance(value, list):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Writes what is still held back."""
        self._file.close()
        self._events.close()

    @staticmethod
    def _drop_after(path: Path, step: int) -> None:
        if not path.exists():
            return
        kept = [json.dumps(record) for record in read_jsonl(path) if record["step"] <= step]
        shorter = path.with_suffix(".tmp")
        shorter.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(shorter, path)


class Unwritten:
    """Takes what a MetricWriter takes and writes nothing: for all processes but the first."""

    def write(self, step: int, kind: str, values: Mapping[str, float | list[float]]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file; a last line that a killed run left unfinished is skipped."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


class Progress:
    """One line that says where the run is; on a terminal it is drawn over itself."""

    WIDTH = 24

    def __init__(self, total: int, images_per_step: int, out: TextIO, step: int = 0):
        self.total, self.images, self.out = total, images_per_step, out
        self._redraw = out.isatty()
        self._mark = (time.perf_counter(), step)
        self.images_per_second = 0.0

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Prints step, images per second since the last call, and the losses."""
        now, (then, before) = time.perf_counter(), self._mark
        self.images_per_second = (step - before) * self.images / max(now - then, 1e-9)
        self._mark = (now, step)
        done = self.WIDTH * step // self.total
        bar = f"[{'#' * done}{'.' * (self.WIDTH - done)}] " if self._redraw else ""
        names = {"loss": "loss", "auxiliary_loss": "auxiliary", "accuracy": "accuracy"}
        shown = [f"{label} {values[name]:.4f}" for name, label in names.items() if name in values]
        text = f"{bar}step {step}/{self.total}  {self.images_per_second:.0f} images/s  "
        print(
            ("\r" if self._redraw else "") + text + "  ".join(shown),
            end="\x1b[K" if self._redraw else "\n",
            file=self.out,
            flush=True,
        )

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        print(("\r\x1b[K" if self._redraw else "") + text, file=self.out, flush=True)

    def close(self) -> None:
        """Ends the line."""
        if self._redraw:
            print(file=self.out, flush=True)


def origin(values: Mapping[str, Any]) -> str | None:
    """Where a training step first left the finite numbers, in the order it is computed in.

    Forward from the embedding to the loss, by rms/LAYER; then backward, by grad_norm/LAYER; then
    anything else. None if all values are finite.
    """
    bad = {name for name, value in values.items() if not np.all(np.isfinite(value))}
    if not bad:
        return None
    forward = sorted((_layers(bad, "rms/")), key=_depth)
    if forward:
        return f"the activations of {forward[0]}"
    if "main_loss" in bad:
        return "the activations of head"
    losses = sorted(name for name in bad if name.startswith("encoderblock_"))
    if losses:
        return losses[0]
    backward = sorted(_layers(bad, "grad_norm/"), key=_depth, reverse=True)
    return f"the gradients of {backward[0]}" if backward else min(bad)


def _layers(names: set[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _depth(layer: str) -> tuple[int, str]:
    """Where a layer stands: what comes before the blocks, the blocks in order, what comes after."""
    block = layer.removeprefix("encoderblock_")
    if block.isdecimal():
        return 1 + int(block), layer
    return (0 if layer in ("embedding", "cls", "posembed_input") else 1_000_000, layer)
