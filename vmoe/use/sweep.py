"""Accuracy, multiply-adds and time of trained models as capacity and budget fall."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from vmoe.data.pipeline import ImageSet, evaluation_batches
from vmoe.ensemble import average
from vmoe.evaluate import counts, dropped_share
from vmoe.inference import Choices, run
from vmoe.model_config import ModelConfig
from vmoe.routing import has_setting, takes_input
from vmoe.use.macs import has_data_dependent_products, static_macs
from vmoe.use.trained import Trained

CAPACITIES = (2.0, 1.0, 0.5, 0.25)
BUDGETS = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Row:
    """A model, or several together, at one setting.

    Attributes:
      model: its name.
      choices: what was chosen, for people.
      capacity, budget: what was swept; None where it was not.
      batch_priority: of a capacity.
      accuracy: share of the images classified right.
      loss: mean negative log-likelihood of the right class.
      dropped: share of the choices asked for that were not served, for want of a place or as
        outside the budget; None: nothing is counted.
      macs: multiply-adds per image, as executed: padding and empty places count.
      milliseconds: per image, the median of `times`.
      times: milliseconds per image of every round.
    """

    model: str
    choices: str
    capacity: float | None
    budget: float | None
    batch_priority: bool | None
    accuracy: float
    loss: float
    dropped: float | None
    macs: float
    milliseconds: float
    times: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """A row, and what an ensemble of several models needs of it.

    Attributes:
      row: the figures.
      log_probabilities: f32[N, classes].
    """

    row: Row
    log_probabilities: np.ndarray


def settings(
    model: ModelConfig, base: Choices, capacities: Sequence[float], budgets: Sequence[float]
) -> list[Choices]:
    """The choices to measure: each capacity in token order and by priority, then each budget.

    A dense model, or a router with neither, is measured as it is.
    """
    if model.moe is None:
        return [base]
    router = model.moe.router
    found: list[Choices] = []
    if has_setting(router, "capacity_factor"):
        orders = (False, True) if has_setting(router, "batch_priority") else (None,)
        found += [
            replace(base, capacity=capacity, batch_priority=order)
            for order in orders
            for capacity in capacities
        ]
    if takes_input(router, "budget"):
        found += [replace(base, budget=budget) for budget in budgets]
    return found or [base]


def sweep(
    models: Sequence[Trained],
    images: ImageSet,
    choices: Callable[[ModelConfig], Sequence[Choices]],
    rounds: int = 5,
    note: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measures every model at its settings, and all of them together where they share these.

    All settings of a model are timed in turns, `rounds` times, after one untimed pass.

    Args:
      models: one or more; several are also averaged, probability by probability.
      images: the labelled images.
      choices: the settings of a model.
      rounds: timed passes over the images.
      note: told what is being done.
    """
    measured = [
        _measure(trained, images, choices(trained.config.model), rounds, note) for trained in models
    ]
    labels = np.concatenate([b["labels"][b["mask"]] for b in evaluation_batches(images, 64)])
    rows = [m.row for of_model in measured for m in of_model]
    same = {tuple(m.row.choices for m in of_model) for of_model in measured}
    if len(models) > 1 and len(same) == 1:
        rows += [_together(members, labels) for members in zip(*measured, strict=True)]
    return rows


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON can hold them."""
    return [asdict(row) for row in rows]


def _measure(
    trained: Trained,
    images: ImageSet,
    settings: Sequence[Choices],
    rounds: int,
    note: Callable[[str], None],
) -> list[Measured]:
    size = trained.config.data.eval_batch_size
    batches = list(evaluation_batches(images, size))
    cells = []
    for choices in settings:
        note(f"{trained.name}: {choices}")
        cells.append(_Cell(trained, choices, batches))
    times: list[list[float]] = [[] for _ in cells]
    for number in range(rounds):
        note(f"{trained.name}: round {number + 1} of {rounds}")
        for cell, own in zip(cells, times, strict=True):
            own.append(cell.timed())
    return [cell.measured(own) for cell, own in zip(cells, times, strict=True)]


class _Cell:
    """One program on all batches, which stay on the device; budgets and runs alike share it."""

    def __init__(self, trained: Trained, choices: Choices, batches: list[Any]):
        self._trained, self._choices = trained, choices
        self._batches = [jax.device_put(batch) for batch in batches]
        self._count = sum(int(batch["mask"].sum()) for batch in batches)
        config = trained.config
        traced = _outcome.trace(
            config.model, choices.program, config.loss, trained.params, self._batches[0],
            choices.served,
        )  # fmt: skip
        self._static = static_macs(traced.jaxpr.jaxpr) / len(batches[0]["mask"])
        self._by_load = has_data_dependent_products(traced.jaxpr.jaxpr)
        self._outcomes = [jax.device_get(outcome) for outcome in self._run()]

    def _run(self) -> list[Any]:
        config, choices = self._trained.config, self._choices
        fixed = config.model, choices.program, config.loss, self._trained.params
        done = [_outcome(*fixed, batch, choices.served) for batch in self._batches]
        return jax.block_until_ready(done)

    def timed(self) -> float:
        """Milliseconds per image of one pass."""
        begin = time.perf_counter()
        self._run()
        return 1e3 * (time.perf_counter() - begin) / self._count

    def measured(self, times: list[float]) -> Measured:
        """The figures."""
        log_p, labels = (
            np.concatenate([o[name][o["mask"]] for o in self._outcomes])
            for name in ("log_p", "labels")
        )
        blocks = jax.tree.map(lambda *sums: sum(sums), *(o["blocks"] for o in self._outcomes))
        macs = self._static
        if self._by_load:
            rows = (own["load"].sum() * self._row_macs(block) for block, own in blocks.items())
            macs += float(sum(rows)) / self._count
        accuracy, loss = scores(log_p, labels)
        choices = self._choices
        row = Row(
            model=self._trained.name,
            choices=str(choices),
            capacity=choices.capacity if isinstance(choices.capacity, float) else None,
            budget=choices.budget,
            batch_priority=choices.batch_priority,
            accuracy=accuracy,
            loss=loss,
            dropped=dropped_share(blocks.values()),
            macs=float(macs),
            milliseconds=statistics.median(times),
            times=tuple(times),
        )
        return Measured(row, log_p)

    def _row_macs(self, block: str) -> int:
        layers = self._trained.params["Encoder"][block]["Moe"]["Mlp"]
        return sum(int(np.prod(layers[name]["kernel"].shape[1:])) for name in layers)


def _result(
    config: ModelConfig,
    choices: Choices,
    loss: str,
    params: Any,
    batch: dict[str, jax.Array],
    served: jax.Array | None,
) -> dict[str, Any]:
    logits, routing = run(config, choices, params, batch["images"], batch["mask"], served)
    together = average(loss, logits, config.ensemble_size)
    return {
        "log_p": jax.nn.log_softmax(together),
        "labels": batch["labels"],
        "mask": batch["mask"],
        "blocks": counts(routing),
    }


_outcome = jax.jit(_result, static_argnums=(0, 1, 2))


def scores(log_p: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy, and the mean negative log-likelihood."""
    right = np.argmax(log_p, axis=-1) == labels
    return float(np.mean(right)), float(-np.mean(log_p[np.arange(len(labels)), labels]))


def _together(members: Sequence[Measured], labels: np.ndarray) -> Row:
    """The models' mean probabilities; they cost what all of them cost."""
    stacked = np.stack([m.log_probabilities for m in members])
    log_p = np.logaddexp.reduce(stacked, axis=0) - np.log(len(members))
    accuracy, loss = scores(log_p, labels)
    rows = [m.row for m in members]
    times = tuple(sum(each) for each in zip(*(row.times for row in rows), strict=True))
    return replace(
        rows[0],
        model=f"all {len(rows)} together",
        accuracy=accuracy,
        loss=loss,
        dropped=None,
        macs=sum(row.macs for row in rows),
        milliseconds=statistics.median(times),
        times=times,
    )
