"""The reports of `vmoe evaluate`: each a name, a measurement, and a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from vmoe.adversarial import attack
from vmoe.calibration import (
    brier,
    calibration_error,
    nll,
    probabilities,
    scaled_by_the_other_half,
)  # fmt: skip
from vmoe.config import TrainConfig
from vmoe.corruptions import CORRUPTIONS, Corrupted
from vmoe.data import pipeline
from vmoe.data.class_names import class_name
from vmoe.data.pipeline import ImageSet
from vmoe.data.views import Chosen, Fitted
from vmoe.errors import UserError
from vmoe.evaluate import Report, evaluate
from vmoe.fewshot import PENALTIES, SHOTS, draw_shots, fit
from vmoe.inference import AS_TRAINED, Choices
from vmoe.ood import auroc, fpr95
from vmoe.outputs import Outputs, collect, collect_features
from vmoe.overrides import load
from vmoe.specialisation import class_information, evenness, expert_class_counts
from vmoe.table import table

POOL = 100
"""Training images of each class, in the mean, that few-shot evaluation draws from."""
OUTSIDE = "demo"
"""The config whose test images are the ones from outside, unless told otherwise."""


@dataclass(frozen=True)
class Subject:
    """A trained model and the images it is measured on.

    Attributes:
      config: of the run.
      params: the weights.
      train: training images, for few-shot evaluation.
      test: test images.
      outside: the config, by name or file, of the images from outside.
      choices: how the model is used; features and attacks are as trained.
    """

    config: TrainConfig
    params: Any
    train: ImageSet
    test: ImageSet
    outside: str = OUTSIDE
    choices: Choices = AS_TRAINED

    @cached_property
    def report(self) -> Report:
        """Accuracy, loss and what the routers did, on the test images."""
        return evaluate(self.config, self.params, self.test, self.choices)  # type: ignore[arg-type]

    @cached_property
    def outputs(self) -> Outputs:
        """On the test images."""
        return self.of(self.test)

    def of(self, images: Any) -> Outputs:
        """On other images."""
        return collect(self.config, self.params, images, self.choices)


def calibration(subject: Subject) -> str:
    """NLL, Brier score and calibration error, before and after temperature scaling."""
    out = subject.outputs
    after = scaled_by_the_other_half(out.logits, out.labels)
    rows = [
        _scores("as it is", out.p, out.labels),
        _scores("temperature of the other half", after, out.labels),
    ]
    return table(("calibration", "accuracy", "NLL", "Brier", "ECE"), rows)


def corruptions(subject: Subject) -> str:
    """The same scores with noise and blur of five degrees."""
    rows = []
    for kind in CORRUPTIONS:
        for severity in range(1, 6):
            worse = Corrupted(subject.test, kind, severity, subject.config.data.value_range)
            out = subject.of(worse)
            rows.append(_scores(f"{kind} {severity}", out.p, out.labels))
    return table(("corruption", "accuracy", "NLL", "Brier", "ECE"), rows)


def ood(subject: Subject) -> str:
    """How well the largest probability tells test images from those of another data set.

    Raises:
      UserError: if that is the model's own data set.
    """
    other = load(subject.outside).data
    own = subject.config.data
    if (other.name, other.path, other.tfds_name) == (own.name, own.path, own.tfds_name):
        raise UserError(
            f"the images of {subject.outside} are the model's own; fix: --ood=CONFIG of others"
        )
    _, images = pipeline.load(other)
    fitted = Fitted(images, other.value_range, subject.test.shape, own.value_range)
    inside, outside = (o.p.max(axis=1) for o in (subject.outputs, subject.of(fitted)))
    row = (subject.outside, f"{auroc(inside, outside):.4f}", f"{fpr95(inside, outside):.4f}")
    return table(("out of distribution", "AUROC", "FPR95"), [row])


def fewshot(subject: Subject) -> str:
    """Ridge regression on the features of a few training images of each class.

    The penalty is the best on training images that are not among the shots; what the best on the
    test images would give, as papers report it, stands beside it.
    """
    seed, train = subject.config.seed, subject.train
    count = min(len(train), POOL * train.num_classes)
    pool = np.sort(np.random.default_rng(seed).permutation(len(train))[:count])
    x, y = collect_features(subject.config, subject.params, Chosen(train, pool))  # type: ignore[arg-type]
    x_test, y_test = collect_features(subject.config, subject.params, subject.test)
    rows = []
    for shots in SHOTS:
        chosen = draw_shots(y, shots, seed)
        rest = np.setdiff1d(np.arange(len(y)), chosen)
        ridge = fit(x[chosen], y[chosen], train.num_classes)
        held_out = [ridge.accuracy(x[rest], y[rest], p) if len(rest) else 0.0 for p in PENALTIES]
        on_test = [ridge.accuracy(x_test, y_test, p) for p in PENALTIES]
        best = int(np.argmax(held_out))
        cells = f"{on_test[best]:.2%}", f"2^{np.log2(PENALTIES[best]):.0f}", f"{max(on_test):.2%}"
        rows.append((f"{shots} shots", *cells))
    return table(("few-shot linear", "accuracy", "penalty", "best on test"), rows)


def routing(subject: Subject) -> str:
    """For each MoE block: load, dropped and gates, and which experts serve which classes.

    All as the model is used, with its capacity: what finds no place counts as dropped only.
    """
    counts = expert_class_counts(subject.config, subject.params, subject.test, subject.choices)
    report = subject.report
    rows = [
        (
            block,
            f"{evenness(own):.3f}",
            f"{report.dropped_in[block]:.2%}",
            f"{report.gate_entropy[block]:.3f}" if block in report.gate_entropy else "",
            f"{class_information(own):.3f}",
        )
        for block, own in counts.items()
    ]
    header = ("routing", "load entropy", "dropped", "gate entropy", "class information, bits")
    parts = [table(header, rows)]
    for block, own in counts.items():
        shares = own / np.maximum(own.sum(axis=1, keepdims=True), 1.0)
        header = (f"{block}, %", *(f"e{expert}" for expert in range(own.shape[1])))
        rows = [
            (class_name(subject.test.class_names, label), *(f"{100 * share:.0f}" for share in line))
            for label, line in enumerate(shares)
        ]
        parts.append(table(header, rows))
    return "\n".join(parts)


def ensemble(subject: Subject) -> str:
    """The members alone against all together, and how often two of them differ.

    Raises:
      UserError: if the model is no ensemble.
    """
    out = subject.outputs
    members = out.members.shape[1]
    if members == 1:
        raise UserError("the model is no ensemble; fix: evaluate without the set ensemble")
    alone = [probabilities(out.members[:, m]) for m in range(members)]
    rows = [_scores(f"member {m}", p, out.labels) for m, p in enumerate(alone)]
    rows.append(_scores("all together", out.p, out.labels))
    choices = [p.argmax(axis=1) for p in alone]
    differ = np.mean([np.mean(a != b) for a, b in combinations(choices, 2)])
    shown = table(("ensemble", "accuracy", "NLL", "Brier", "ECE"), rows)
    return f"{shown}two members differ on {differ:.2%} of the images\n"


def adversarial(subject: Subject) -> str:
    """Error and loss before and after the images are changed against the model.

    Raises:
      UserError: if the config says of no change.
    """
    if not subject.config.adversarial.steps:
        raise UserError(
            "adversarial.steps is 0; fix: --config.adversarial.steps=5 and "
            "--config.adversarial.epsilon=0.03"
        )
    found = attack(subject.config, subject.params, subject.test)
    rows = [
        ("before", f"{found.error[0]:.2%}", f"{found.loss[0]:.4f}", ""),
        ("after", f"{found.error[1]:.2%}", f"{found.loss[1]:.4f}", f"{found.changed:.2%}"),
    ]
    return table(("adversarial", "error", "loss", "predictions changed"), rows)


SETS: dict[str, Callable[[Subject], str]] = {
    "calibration": calibration,
    "ood": ood,
    "corruptions": corruptions,
    "fewshot": fewshot,
    "routing": routing,
    "ensemble": ensemble,
    "adversarial": adversarial,
}
"""Reports beside accuracy, loss and load, which are always there."""


def chosen_sets(names: str) -> list[str]:
    """The names of "calibration,routing"; "all" are those that fit any sparse model.

    Raises:
      UserError: for a name that is none.
    """
    if names == "all":
        return ["calibration", "ood", "corruptions", "fewshot", "routing"]
    chosen = [name for name in names.split(",") if name]
    for name in chosen:
        if name not in SETS:
            raise UserError(f"--sets has {name}; fix: use some of {', '.join(SETS)}, or all")
    return chosen


def _scores(label: str, p: np.ndarray, labels: np.ndarray) -> Sequence[str]:
    accuracy = np.mean(p.argmax(axis=1) == labels)
    rest = (nll(p, labels), brier(p, labels), calibration_error(p, labels))
    return (label, f"{accuracy:.2%}", *(f"{value:.4f}" for value in rest))
