"""Batch prioritised routing beats vanilla routing at low capacity, in testing alone.

Arm vmoe_k1 of the protocol, trained in token order at capacity factor 1.05. Its test images are
classified at capacity factors C of 0.1 to 2, served in token order (vanilla), largest gate first
(bpr), or in random order (random; a new draw for each group), the control for "any order that does
not favour the first images of a group".

Primary: the mean over C = 0.1, 0.2, 0.3, 0.5, 0.7 of accuracy(bpr) - accuracy(vanilla).
Secondary: the same of bpr - random and random - vanilla; each C alone; equivalence of bpr and
vanilla at C = 2 within 0.1 points; the share of choices dropped; the share of predictions that flip
when the test images are batched in another order, at C = 0.5 and 1.

Source: arXiv:2106.05974, section 4.1 (figure 4 there).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from bench.papers import arms
from bench.papers.jobs import Job, Report
from bench.papers.predict import Inputs, log_probabilities
from bench.papers.protocol import Settings, train_config
from bench.papers.scores import Comparison, compared
from bench.papers.store import Store
from vmoe.config import TrainConfig
from vmoe.evaluate import with_capacity
from vmoe.model_config import ModelConfig

ARM = "vmoe_k1"
ARMS = (ARM,)
LOW = (0.1, 0.2, 0.3, 0.5, 0.7)
CAPACITIES = (*LOW, 1.0, 2.0)
FLIPS = (0.5, 1.0)
ORDERS = ("vanilla", "bpr", "random")
RANDOM_ORDER = "bench.papers.random_order:random_order"


def jobs(store: Store, data: arms.Data, settings: Settings) -> Iterator[Job]:
    """The training runs and the capacity curves that are missing."""
    yield from arms.jobs(ARM, store, data, settings)
    cost = len(data.test) * (len(CAPACITIES) + len(FLIPS))
    for seed in settings.seeds:
        for order in ORDERS:
            if not store.has(curve_name(order, seed)):
                yield Job(
                    curve_name(order, seed), cost,
                    lambda report, order=order, seed=seed: _curve(
                        order, seed, store, data, settings, report
                    ),
                )  # fmt: skip


def curve_name(order: str, seed: int) -> str:
    """Where the store has the curve of an order."""
    return f"bpr/{order}-seed{seed}"


def served(config: TrainConfig, capacity: float, order: str) -> ModelConfig:
    """The model, tested at a capacity factor in one of ORDERS."""
    model = with_capacity(config, capacity, order == "bpr").model
    if order == "random":
        assert model.moe is not None
        router = replace(model.moe.router, name=RANDOM_ORDER)
        model = replace(model, moe=replace(model.moe, router=router))
    return model


def priorities(model: ModelConfig, tokens: int, batch: int, seed: int) -> Inputs:
    """A random priority f32[G, S] for every token, block and batch; `tokens` are of an image."""
    moe = model.moe
    assert moe is not None

    def inputs(number: int) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng((seed, number))
        shape = (batch // moe.group_images, moe.group_images * tokens)
        return [{"priority": rng.random(shape, np.float32)} for _ in moe.layers]

    return inputs


def _curve(
    order: str, seed: int, store: Store, data: arms.Data, settings: Settings, report: Report
) -> None:
    config = train_config(ARM, store.read(arms.run_name(ARM, seed))["learning_rate"], 0, settings)
    params = arms.params_of(ARM, seed, store)
    images, labels, batch = data.test.images, data.test.labels, settings.eval_batch
    tokens = (images.shape[1] // config.model.patch_size) ** 2

    def classes(capacity: float, shown: np.ndarray, draw: int) -> tuple[np.ndarray, float]:
        model = served(config, capacity, order)
        inputs = priorities(model, tokens, batch, draw) if order == "random" else None
        found, dropped = log_probabilities(model, params, shown, batch, inputs)
        assert dropped is not None
        return np.argmax(found, -1), dropped

    another = np.random.default_rng(seed).permutation(len(images))
    points: list[dict[str, Any]] = []
    for number, capacity in enumerate(CAPACITIES):
        chosen, dropped = classes(capacity, images, seed)
        point = {"capacity": capacity, "accuracy": np.mean(chosen == labels), "dropped": dropped}
        if capacity in FLIPS:
            otherwise, _ = classes(capacity, images[another], seed + 10**6)
            point["flipped"] = np.mean(otherwise != chosen[another])
        points.append({name: float(value) for name, value in point.items()})
        report(f"capacity {capacity}", (number + 1) / len(CAPACITIES))
    store.write(curve_name(order, seed), {"order": order, "seed": seed, "points": points})


def comparisons(store: Store, data: arms.Data, settings: Settings) -> list[Comparison]:
    """Between the orders, where all curves are there; at low capacity together, then at each."""
    if not _complete(store, settings):
        return []
    curves = {order: _accuracies(order, store, settings) for order in ORDERS}
    low = {o: [np.mean([a[c] for c in LOW]) for a in curves[o]] for o in ORDERS}
    pairs = (("bpr", "vanilla"), ("bpr", "random"), ("random", "vanilla"))
    found = [
        compared(
            f"{first} - {second}, mean over low C", "accuracy", low[first], low[second],
            "bpr: accuracy at low capacity" if second == "vanilla" and first == "bpr" else None,
        )
        for first, second in pairs
    ]  # fmt: skip
    for c in CAPACITIES:
        first, second = ([a[c] for a in curves[order]] for order in ("bpr", "vanilla"))
        found.append(compared(f"bpr - vanilla, C = {c:g}", "accuracy", first, second))
    return found


def table(store: Store, data: arms.Data, settings: Settings) -> list[list[str]]:
    """Mean accuracy in percent, and shares dropped and flipped, by capacity."""
    head = [
        "C",
        *(f"{order} {what}" for what in ("accuracy", "dropped", "flipped") for order in ORDERS),
    ]
    if not _complete(store, settings):
        return [head]
    lines = [head]
    for number, capacity in enumerate(CAPACITIES):
        line = [f"{capacity:g}"]
        for what in ("accuracy", "dropped", "flipped"):
            for order in ORDERS:
                points = [_points(order, s, store)[number] for s in settings.seeds]
                known = [point[what] for point in points if what in point]
                line.append(f"{100 * np.mean(known):.2f}" if known else "")
        lines.append(line)
    return lines


def curves(store: Store, settings: Settings) -> dict[str, list[tuple[float, float]]]:
    """Mean accuracy in percent over capacity, for each order; {} until all are there."""
    if not _complete(store, settings):
        return {}
    each = {order: _accuracies(order, store, settings) for order in ORDERS}
    return {
        order: [(c, float(np.mean([by_capacity[c] for by_capacity in seeds]))) for c in CAPACITIES]
        for order, seeds in each.items()
    }


def _complete(store: Store, settings: Settings) -> bool:
    return all(store.has(curve_name(o, s)) for o in ORDERS for s in settings.seeds)


def _points(order: str, seed: int, store: Store) -> list[dict[str, float]]:
    return store.read(curve_name(order, seed))["points"]  # type: ignore[no-any-return]


def _accuracies(order: str, store: Store, settings: Settings) -> list[dict[float, float]]:
    """Percent by capacity, for each seed."""
    return [
        {point["capacity"]: 100.0 * point["accuracy"] for point in _points(order, seed, store)}
        for seed in settings.seeds
    ]
