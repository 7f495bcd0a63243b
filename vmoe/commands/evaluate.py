"""`vmoe evaluate`: the last checkpoint of a run, on its test images."""

from __future__ import annotations

import sys

from vmoe.assess import OUTSIDE, SETS, Subject, chosen_sets
from vmoe.commands.choices import choices_of
from vmoe.commands.given import Given, quiet
from vmoe.demo import print_report
from vmoe.evaluate import Report
from vmoe.inference import chosen_model
from vmoe.table import table
from vmoe.train import tell_skipped
from vmoe.use.trained import images_of, load_trained


def routing_table(report: Report) -> str:
    """What each MoE block drops, and how sure its gates are: 0 of one expert, 1 of none."""
    entropy = {block: f"{value:.3f}" for block, value in report.gate_entropy.items()}
    rows = [(b, f"{share:.2%}", entropy.get(b, "")) for b, share in report.dropped_in.items()]
    return table(("routing", "dropped", "gate entropy"), rows)


def run(given: Given) -> int:
    """Prints the report of the newest sound checkpoint, and the further ones asked for."""
    sets = chosen_sets(given.flags.get("sets", ""))
    workdir, choices = given.need("workdir", "--workdir=DIR of a run"), choices_of(given)
    quiet()
    trained = load_trained(workdir, given.overrides)
    config = trained.config
    chosen_model(config.model, choices)
    train_images, images = images_of(trained)
    outside = given.flags.get("ood", OUTSIDE)
    subject = Subject(config, trained.params, train_images, images, outside, choices)
    report = subject.report
    print(f"step {trained.step} of {workdir}, {choices}")
    print_report(report, sys.stdout)
    if report.dropped_in:
        print(f"\n{routing_table(report)}", end="")
    tell_skipped("test", images, sys.stdout)
    for name in sets:
        print(f"\n{SETS[name](subject)}", end="", flush=True)
    return 0
