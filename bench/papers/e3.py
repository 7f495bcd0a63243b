"""E^3 improves on V-MoE and on an ensemble of two, at equal cost.

Six blocks, experts in the last two, so that the copies of an image that E^3 makes share four of six
blocks. Arms, equal in executed multiply-adds to 0.2 %:

* e3: two members, one expert a token each, eight experts in all;
* e3_vmoe_k2: one model, two experts a token, MLPs and experts widened to 291;
* e3_pair: the mean probability of two e3_half (dense, MLPs of 127), seeds s and s + 100;
* e3_wide: one dense model, MLPs of 401.

Primary: NLL(e3) - NLL(e3_vmoe_k2). Secondary: NLL, Brier score and expected calibration error (15
bins), as they are and after temperature scaling, and accuracy, against all three; AUROC and FPR95
of the largest probability for telling scikit-learn's handwritten digits, threefold enlarged, from
the test images.

Source: arXiv:2110.03360.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from bench.papers import arms, between, speed
from bench.papers.jobs import Job, Report
from bench.papers.predict import log_probabilities
from bench.papers.protocol import ARMS as MODELS
from bench.papers.protocol import Settings
from bench.papers.scores import SCORES, Comparison, compared
from bench.papers.store import Store
from vmoe.data.digits import load_digits
from vmoe.data.images import BACKGROUND
from vmoe.ensemble import average
from vmoe.ood import auroc, fpr95

PAIR, HALF = "e3_pair", "e3_half"
SECOND = 100
"""The other member of a pair has this much more as its seed."""
OUTSIDE_IMAGES = 1600
ARMS = ("e3", "e3_vmoe_k2", PAIR, "e3_wide")
PAIRS = tuple(("e3", other) for other in ARMS[1:])
PRIMARY = {(PAIRS[0], "NLL"): "e3: NLL"}
OUTSIDE = {"AUROC": auroc, "FPR95": fpr95}


def jobs(store: Store, data: arms.Data, settings: Settings) -> Iterator[Job]:
    """The runs that are missing, the pairs made of them, and what they say of other images."""
    trained = [arm for arm in ARMS if arm != PAIR]
    for arm in trained:
        yield from arms.jobs(arm, store, data, settings)
    halves = [m for seed in settings.seeds for m in members(seed)]
    yield from arms.jobs(HALF, store, data, settings, halves)
    yield from speed.jobs((*trained, HALF), store, data, settings)
    for seed in settings.seeds:
        if not store.has(arms.run_name(PAIR, seed)):
            name = arms.run_name(PAIR, seed)
            yield Job(name, 1.0, partial(_pair, seed, store, data))
        for arm in ARMS:
            if not store.has(outside_name(arm, seed)):
                cost = OUTSIDE_IMAGES * (2.0 if arm == PAIR else 1.0)
                do = partial(_outside, arm, seed, store, settings)
                yield Job(outside_name(arm, seed), cost, do)


def members(seed: int) -> tuple[int, int]:
    """The seeds of the two halves of a pair."""
    return seed, seed + SECOND


def outside_name(arm: str, seed: int) -> str:
    """Where the store has what a run says of images from outside."""
    return f"outside/{arm}-seed{seed}"


def outside_images(count: int) -> np.ndarray:
    """The first handwritten digits, 8 x 8 enlarged to 24 x 24, on black: f32[count, 28, 28, 1]."""
    train, test = load_digits()
    small = np.concatenate([train.images, test.images])[:count]
    large = small.repeat(3, axis=1).repeat(3, axis=2)
    return np.pad(large, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=BACKGROUND)


def together(log_p: Sequence[np.ndarray]) -> np.ndarray:
    """Log of the members' mean probabilities f32[N, classes]."""
    rows = np.stack(log_p, axis=1).reshape(-1, log_p[0].shape[-1])
    return np.asarray(average("softmax", rows, len(log_p)))


def comparisons(store: Store, data: arms.Data, settings: Settings) -> list[Comparison]:
    """Of all scores, where the runs are there."""
    found = between.comparisons(PAIRS, PRIMARY, tuple(SCORES), store, data, settings)
    for name in OUTSIDE:
        for first, second in PAIRS:
            if all(_known(arm, store, settings) for arm in (first, second)):
                one, other = (_told(arm, name, store, settings) for arm in (first, second))
                found.append(compared(f"{first} - {second}", name, one, other))
    return found


def table(store: Store, data: arms.Data, settings: Settings) -> list[list[str]]:
    """The arms' means; a pair costs two halves."""
    return between.table((*ARMS, HALF), tuple(SCORES), store, data, settings)


def _pair(seed: int, store: Store, data: arms.Data, report: Report) -> None:
    halves = [arms.run_name(HALF, member) for member in members(seed)]
    log_p = together([store.arrays(half)["log_probabilities"] for half in halves])
    numbers = store.read(halves[0]) | {
        "arm": PAIR, "seed": seed,
        "accuracy": float(np.mean(np.argmax(log_p, -1) == data.test.labels)),
    }  # fmt: skip
    store.write(arms.run_name(PAIR, seed), numbers, {"log_probabilities": log_p})


def _outside(arm: str, seed: int, store: Store, settings: Settings, report: Report) -> None:
    images = outside_images(OUTSIDE_IMAGES)
    parts = [(HALF, member) for member in members(seed)] if arm == PAIR else [(arm, seed)]
    log_p = [
        log_probabilities(
            MODELS[name], arms.params_of(name, number, store), images, settings.eval_batch
        )[0]
        for name, number in parts
    ]
    known = store.arrays(arms.run_name(arm, seed))["log_probabilities"]
    scores = [np.exp(p.astype(np.float64).max(-1)) for p in (known, together(log_p))]
    store.write(outside_name(arm, seed), {name: of(*scores) for name, of in OUTSIDE.items()})


def _known(arm: str, store: Store, settings: Settings) -> bool:
    return all(store.has(outside_name(arm, seed)) for seed in settings.seeds)


def _told(arm: str, name: str, store: Store, settings: Settings) -> list[float]:
    return [store.read(outside_name(arm, seed))[name] for seed in settings.seeds]
