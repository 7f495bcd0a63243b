"""The demo: train, evaluate, and show what the routers do."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

import jax

from vmoe.assess import OUTSIDE, SETS, Subject
from vmoe.checkpoint import Checkpoints
from vmoe.config import TrainConfig
from vmoe.data import pipeline
from vmoe.errors import UserError
from vmoe.evaluate import Report, capacity_sweep, evaluate
from vmoe.inference import AS_TRAINED, Choices, chosen_model
from vmoe.routing import has_setting
from vmoe.state import TrainState, init_state
from vmoe.train import train

BAR = 30


def demo(config: TrainConfig, out: TextIO = sys.stdout) -> int:
    """Trains, then prints accuracy, dropped tokens, load per expert and the capacity table."""
    begin = time.perf_counter()
    print(f"training {config.steps} steps in {config.workdir}", file=out)
    outcome = train(config, out)
    if outcome.stopped_by:
        return 128 + outcome.stopped_by
    print(f"trained in {time.perf_counter() - begin:.0f} s, compile included\n", file=out)
    print_report(evaluate(config, outcome.state.evaluated, outcome.test), out)
    moe = config.model.moe
    if moe is not None and has_setting(moe.router, "capacity_factor", "batch_priority"):
        rows = capacity_sweep(config, outcome.state.evaluated, outcome.test)
        print_sweep(rows, out)
    print(f"\n{time.perf_counter() - begin:.0f} s in all", file=out)
    return 0


def evaluate_checkpoint(
    config: TrainConfig,
    choices: Choices = AS_TRAINED,
    out: TextIO = sys.stdout,
    sets: Sequence[str] = (),
    outside: str = OUTSIDE,
) -> Report:
    """Evaluates the newest sound checkpoint of config.workdir and prints the report.

    Args:
      config: of the run.
      choices: how the model is used.
      out: where the report goes.
      sets: further reports, of `vmoe.assess.SETS`.
      outside: the config of the images from outside, of the set "ood".

    Raises:
      UserError: if there is no checkpoint, none is sound, the model cannot follow the choices, or
        a report does not fit it.
    """
    chosen_model(config.model, choices)
    train_images, images = pipeline.load(config.data)
    like = jax.eval_shape(lambda: init_state(config, images.shape))
    restored = Checkpoints(config.workdir).restore(tuple(like))
    if restored is None:
        raise UserError(f"{config.workdir} has no checkpoint; fix: train there first")
    for reason in restored.refused:
        print(f"{reason}: refused", file=sys.stderr)
    params = TrainState(*restored.state).evaluated
    report = evaluate(config, params, images, choices)
    print(f"step {restored.step} of {config.workdir}, {choices}", file=out)
    print_report(report, out)
    subject = Subject(config, params, train_images, images, outside, choices)
    for name in sets:
        print(f"\n{SETS[name](subject)}", end="", file=out, flush=True)
    return report


def print_report(report: Report, out: TextIO = sys.stdout) -> None:
    """Prints the single numbers and a bar per expert."""
    print(f"test accuracy   {report.accuracy:7.2%}  ({report.images} images)", file=out)
    print(f"test loss       {report.loss:7.4f}", file=out)
    if report.dropped is None:
        return
    print(f"tokens dropped  {report.dropped:7.2%}  (of all token-expert pairs)", file=out)
    for block, load in report.load.items():
        print(f"\nload per expert, {block}", file=out)
        for expert, share in enumerate(load):
            bar = "#" * round(BAR * share / max(float(load.max()), 1e-9))
            print(f"  expert {expert}  {share:6.1%}  {bar}", file=out)


def print_sweep(rows: list[tuple[float, Report, Report]], out: TextIO = sys.stdout) -> None:
    """Prints accuracy and dropped share per capacity factor, without and with batch priority."""
    print("\ncapacity    token order            batch priority", file=out)
    print("factor      accuracy   dropped     accuracy   dropped", file=out)
    for factor, plain, priority in rows:
        cells = "     ".join(f"{r.accuracy:7.2%}   {r.dropped:7.2%}" for r in (plain, priority))
        print(f"{factor:6.2f}      {cells}", file=out)
