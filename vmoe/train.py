"""The training loop, to be read top to bottom: build, restore, step, report, evaluate, save."""

from __future__ import annotations

import io
import signal
import sys
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, TextIO

import jax

from vmoe.checkpoint import Checkpoints
from vmoe.config import TrainConfig
from vmoe.data import pipeline
from vmoe.data.images import Images
from vmoe.errors import RunError, UserError
from vmoe.evaluate import evaluate
from vmoe.metrics import MetricWriter, Progress, Unwritten, origin
from vmoe.processes import first_signal, is_first
from vmoe.routing import check_router, check_scope
from vmoe.sharding import image_parts, make_mesh, own_images, place_batch, place_state, spanning
from vmoe.start import start_from
from vmoe.state import TrainState, init_state, make_train_step
from vmoe.workdir import ImagesKept, open_workdir


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
      state: after the last step.
      test: the test images.
      stopped_by: the signal that ended it early, or None.
    """

    state: TrainState
    test: Images
    stopped_by: int | None = None


def train(config: TrainConfig, out: TextIO = sys.stdout) -> Outcome:
    """Trains in config.workdir, going on from the newest sound checkpoint there.

    Raises:
      UserError: settings, files or a workdir that cannot be used; nothing is written then.
      RunError: a value that is not finite, or a checkpoint that cannot be written.
    """
    config = replace(config, mesh=spanning(config.mesh))
    out = out if is_first() else io.StringIO()
    train_images, test_images = pipeline.load(config.data)
    state = _new_state(config.validate(), train_images)
    if config.init_from.path and not Checkpoints(config.workdir).steps():
        state, line = start_from(config, state)
        print(line, file=out)
    mesh = make_mesh(config.mesh)
    state = place_state(mesh, state)
    size = config.data.batch_size
    own = None if mesh is None else own_images(mesh, size)
    batches = pipeline.training_batches(train_images, config.data, config.seed, own)
    workdir = open_workdir(config, ImagesKept(train_images.shape, train_images.class_names))
    checkpoints = Checkpoints(workdir, config.checkpoint.keep)

    start = 0
    if restored := checkpoints.restore(tuple(state)):
        start, state = restored.step, TrainState(*restored.state)
        if restored.data_position is not None:  # of a run made of a checkpoint, without its data
            batches.set_state(restored.data_position)
        for reason in restored.refused:
            print(f"{reason}: refused, using {checkpoints.path(start)}", file=sys.stderr)
        print(f"resumed {workdir} at step {start}", file=out)

    train_step = make_train_step(config)
    progress = Progress(config.steps, config.data.batch_size, out, start)
    writer = MetricWriter(workdir, start) if is_first() else Unwritten()
    log = Log(config, writer, progress, checkpoints)

    def evaluated(state: TrainState) -> dict[str, float]:
        return evaluate(config, state.evaluated, test_images, mesh=mesh).scalars()

    saved = start
    with Interrupt() as interrupt:
        for step in range(start + 1, config.steps + 1):
            state, metrics = train_step(state, place_batch(mesh, next(batches), size))
            log.add(step, metrics)
            last = step == config.steps or interrupt.stops(step, config.log_every)
            if last or step % config.log_every == 0:
                log.flush()
            if config.eval_every and step % config.eval_every == 0 and not last:
                log.flush()
                log.evaluation(step, evaluated(state))
            if last or step % config.checkpoint.every == 0:
                log.flush()  # raises before a state that is not finite could be saved
                checkpoints.save(step, tuple(state), batches.get_state())
                saved = step
            if last:
                break
    if saved == config.steps and start < config.steps:
        log.evaluation(saved, evaluated(state))
    log.close()
    for kind, images in (("training", train_images), ("test", test_images)):
        tell_skipped(kind, images, out)
    if interrupt.stopped_by is not None and saved < config.steps:
        print(f"stopped at step {saved}, saved; the same command goes on from there", file=out)
        return Outcome(state, test_images, interrupt.stopped_by)
    return Outcome(state, test_images)


def tell_skipped(kind: str, images: pipeline.ImageSet, out: TextIO) -> None:
    """Says how many images could not be read, if any."""
    if count := len(pipeline.skipped(images)):
        print(f"{count} {kind} images could not be read and were skipped", file=out)


class Log:
    """Checks the metrics of every step, and writes and shows those of every log_every-th.

    Steps wait on the device until `flush`, so that the loop does not stop for each.
    """

    def __init__(
        self,
        config: TrainConfig,
        writer: MetricWriter | Unwritten,
        progress: Progress,
        checkpoints: Checkpoints,
    ):
        self._config, self._writer, self._progress = config, writer, progress
        self._checkpoints = checkpoints
        self._waiting: list[tuple[int, Any]] = []

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics of a step, which may still be under way."""
        self._waiting.append((step, metrics))

    def flush(self) -> None:
        """Checks and writes what has been added.

        Raises:
          RunError: names the first step with a value that is not finite, and the layer.
        """
        for step, metrics in self._waiting:
            values = {name: value.tolist() for name, value in jax.device_get(metrics).items()}
            self._check(step, values)
            if step % self._config.log_every == 0 or step == self._config.steps:
                self._progress.show(step, values)
                speed = {"images_per_second": self._progress.images_per_second}
                self._writer.write(step, "train", values | speed)
        self._waiting.clear()

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Writes and shows the results on the test images."""
        self._writer.write(step, "eval", values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._progress.note(f"step {step}/{self._config.steps}  test  {shown}")

    def close(self) -> None:
        """Ends the files and the progress line."""
        self._writer.close()
        self._progress.close()

    def _check(self, step: int, values: dict[str, Any]) -> None:
        where = origin(values)
        if where is None:
            return
        self.close()
        steps = self._checkpoints.steps()
        last = self._checkpoints.path(steps[-1]) if steps else "none yet"
        raise RunError(
            f"step {step}: loss {values['loss']:g}; not finite first: {where}; last good "
            f"checkpoint: {last}; fix: a lower optim.lr, a longer warmup, or optim.clip_norm=1.0, "
            "in another workdir"
        )


class Interrupt:
    """Notes SIGINT and SIGTERM, so that the step under way is finished and saved.

    A second one ends the process as usual. Only the main thread may set signal handlers; in any
    other, this does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.stopped_by: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def stops(self, step: int, every: int) -> bool:
        """Whether the run ends with this step; several processes agree every `every` steps."""
        if jax.process_count() == 1:
            self.stopped_by = self.signal
        elif step % every == 0:
            self.stopped_by = first_signal(self.signal)
        return self.stopped_by is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())


def _new_state(config: TrainConfig, images: Images) -> TrainState:
    if images.num_classes > config.model.num_classes:
        raise UserError(
            f"model.num_classes={config.model.num_classes} is less than the "
            f"{images.num_classes} classes of the data; fix: raise it"
        )
    if config.model.moe is not None:
        check_router(config.model.moe.router)
        batch = config.data.batch_size // config.microbatches
        at_once = {"data.batch_size": batch, "data.eval_batch_size": config.data.eval_batch_size}
        check_scope(config.model.moe, at_once, image_parts(make_mesh(config.mesh)))
    try:
        return init_state(config, images.shape)
    except ValueError as error:
        raise UserError(str(error)) from error
