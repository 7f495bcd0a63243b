"""Sparse upcycling beats training from scratch at equal budget.

A ViT (up_dense) is trained by the protocol, 8 epochs. Then, for 4 epochs more with a learning rate
that starts anew (warmup, cosine to 0) and batches in another order:

* dense_on: the same ViT goes on;
* upcycled: the MLPs of its last two blocks become 8 experts each, two to a token, whose weights are
  normalised (router mixtral), so that without drops the first logits are the ViT's; the optimiser's
  moments are reused;
* upcycled_raw: the same with raw gates as weights (V-MoE's router);
* upcycled_fresh: the same as upcycled without the moments.

From scratch, the sparse model of upcycled: scratch_extra for 4 epochs, scratch_all for 12.

What starts from the ViT has the learning rate of up_dense, what starts from scratch that of
up_sparse over 8 epochs. A step of a sparse arm costs 1.36 times as many multiply-adds as one of the
ViT (two experts a token in two of four blocks), so "equal budget" is of images, not of FLOPs; it
favours scratch_all, which is sparse for all of its steps, over upcycled.

Primary: accuracy(upcycled) - accuracy(scratch_all). Secondary: upcycled against all others; NLL.

Source: arXiv:2212.05055.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.papers import arms, between, speed
from bench.papers.jobs import Job, Report
from bench.papers.protocol import Settings, train_config
from bench.papers.scores import Comparison
from bench.papers.store import Store
from vmoe.checkpoint import Checkpoints
from vmoe.config import TrainConfig
from vmoe.init_config import InitFromConfig
from vmoe.start import start_from
from vmoe.state import TrainState, init_state

DENSE, SPARSE, RAW = "up_dense", "up_sparse", "up_raw"
ANOTHER_ORDER = 500
"""The batches after the first phase are those of this much more as the seed."""


@dataclass(frozen=True)
class Way:
    """How an arm gets to its weights.

    Attributes:
      model: of the protocol's ARMS.
      tuned: the arm whose learning rate it has.
      halves: steps, in halves of the first phase's.
      start: from the ViT's checkpoint; None: from scratch.
    """

    model: str
    tuned: str
    halves: int = 1
    start: InitFromConfig | None = None


WAYS = {
    "dense_on": Way(DENSE, DENSE, start=InitFromConfig(moments=True)),
    "upcycled": Way(SPARSE, DENSE, start=InitFromConfig(upcycle=True, moments=True)),
    "upcycled_raw": Way(RAW, DENSE, start=InitFromConfig(upcycle=True, moments=True)),
    "upcycled_fresh": Way(SPARSE, DENSE, start=InitFromConfig(upcycle=True)),
    "scratch_extra": Way(SPARSE, SPARSE),
    "scratch_all": Way(SPARSE, SPARSE, halves=3),
}
ARMS = (DENSE, *WAYS)
PAIRS = tuple(("upcycled", way) for way in WAYS if way != "upcycled")
PRIMARY = {(("upcycled", "scratch_all"), "accuracy"): "upcycling: accuracy"}
WANTED = ("accuracy", "NLL")


def jobs(store: Store, data: arms.Data, settings: Settings) -> Iterator[Job]:
    """The ViTs that are missing, then what becomes of them, then what is trained from scratch."""
    missing = {
        arm: [s for s in settings.seeds if not store.has(arms.run_name(arm, s))] for arm in ARMS
    }
    tuned = {arm: WAYS[arm].tuned if arm in WAYS else arm for arm in ARMS}
    for arm in dict.fromkeys(tuned[arm] for arm in ARMS if missing[arm]):
        yield from arms.trials(arm, store, data, settings)
    for arm in ARMS:
        for seeds in arms.chunks(missing[arm], settings):
            share = WAYS[arm].halves / 2 if arm in WAYS else 1.0
            name = f"runs/{arm}, seeds {', '.join(map(str, seeds))}"
            do = partial(_train, arm, seeds, store, data, settings)
            yield Job(name, arms.cost(settings) * share * len(seeds), do)
    yield from speed.jobs((DENSE, SPARSE, RAW), store, data, settings)


def comparisons(store: Store, data: arms.Data, settings: Settings) -> list[Comparison]:
    """Where the runs are there."""
    return between.comparisons(PAIRS, PRIMARY, WANTED, store, data, settings)


def table(store: Store, data: arms.Data, settings: Settings) -> list[list[str]]:
    """The arms' means, the ViT's after its 8 epochs included."""
    models = {name: way.model for name, way in WAYS.items()}
    return between.table(ARMS, WANTED, store, data, settings, models)


def way_config(name: str, seed: int, rate: float, settings: Settings) -> TrainConfig:
    """The run of an arm after the first phase."""
    way = WAYS[name]
    steps = settings.steps * way.halves // 2
    return replace(train_config(way.model, rate, seed, settings), steps=steps).validate()


def workdir(store: Store, seed: int) -> Path:
    """Where the checkpoint of a ViT is."""
    return store.folder / "upcycling" / f"{DENSE}-seed{seed}"


def first_state(
    name: str, config: TrainConfig, store: Store, image_shape: tuple[int, int, int]
) -> TrainState:
    """The state before the first step of an arm: drawn, or from the ViT's checkpoint."""
    state, start = init_state(config, image_shape), WAYS[name].start
    if start is None:
        return state
    path = str(workdir(store, config.seed))
    return start_from(replace(config, init_from=replace(start, path=path)), state)[0]


def _train(
    arm: str, seeds: Sequence[int], store: Store, data: arms.Data, settings: Settings,
    report: Report,
) -> None:  # fmt: skip
    if arm == DENSE:
        rate = arms.learning_rate(DENSE, store, settings)
        configs = [train_config(DENSE, rate, seed, settings) for seed in seeds]
        states = [init_state(config, data.train.shape) for config in configs]
        orders = list(seeds)
    else:
        rate = arms.learning_rate(WAYS[arm].tuned, store, settings)
        configs = [way_config(arm, seed, rate, settings) for seed in seeds]
        states = [first_state(arm, config, store, data.train.shape) for config in configs]
        orders = [seed + ANOTHER_ORDER for seed in seeds]
    trained = arms.steps(configs[0], data.train, states, orders, report)
    for config, state in zip(configs, trained, strict=True):
        if arm == DENSE:  # before its numbers, which say that all is there
            Checkpoints(workdir(store, config.seed)).save(config.steps, tuple(state), {})
        arms.keep(arm, config, state.params, store, data, settings)
