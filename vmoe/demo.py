"""The demo: train, evaluate, and show what the routers do."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from vmoe.config import TrainConfig
from vmoe.evaluate import Report, capacity_sweep, evaluate
from vmoe.routing import has_setting
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
