"""Claims about trained arms: each is compared with one other, in every score."""

from collections.abc import Iterator, Mapping, Sequence

from bench.papers import arms, speed
from bench.papers.jobs import Job
from bench.papers.protocol import Settings
from bench.papers.scores import SCORES, Comparison, compared
from bench.papers.store import Store

Pair = tuple[str, str]


def jobs(names: Sequence[str], store: Store, data: arms.Data, settings: Settings) -> Iterator[Job]:
    """The runs that are missing, of all the arms, then what they cost."""
    for name in names:
        yield from arms.jobs(name, store, data, settings)
    yield from speed.jobs(names, store, data, settings)


def complete(arm: str, store: Store, settings: Settings) -> bool:
    """Whether all runs of the arm are there."""
    return all(store.has(arms.run_name(arm, seed)) for seed in settings.seeds)


def scored(
    arm: str, store: Store, data: arms.Data, settings: Settings, wanted: Sequence[str]
) -> dict[str, list[float]]:
    """The scores of an arm on the test images, one for each seed."""
    found = [store.arrays(arms.run_name(arm, s))["log_probabilities"] for s in settings.seeds]
    return {name: [SCORES[name](log_p, data.test.labels) for log_p in found] for name in wanted}


def comparisons(
    pairs: Sequence[Pair],
    primaries: dict[tuple[Pair, str], str],
    wanted: Sequence[str],
    store: Store,
    data: arms.Data,
    settings: Settings,
) -> list[Comparison]:
    """First minus second of each pair whose runs are all there, in the scores wanted."""
    ready = [p for p in pairs if all(complete(arm, store, settings) for arm in p)]
    each = {
        arm: scored(arm, store, data, settings, wanted)
        for arm in dict.fromkeys(arm for pair in ready for arm in pair)
    }
    return [
        compared(
            f"{first} - {second}", score, each[first][score], each[second][score],
            primaries.get(((first, second), score)),
        )
        for first, second in ready
        for score in wanted
    ]  # fmt: skip


def table(
    names: Sequence[str],
    wanted: Sequence[str],
    store: Store,
    data: arms.Data,
    settings: Settings,
    models: Mapping[str, str] | None = None,
) -> list[list[str]]:
    """A line for each arm that has all its runs: cost, learning rate, the mean of each score.

    `models` names the model whose cost an arm has, where it is not called as the arm.
    """
    lines = [["arm", *speed.HEAD, "learning rate", *wanted]]
    for arm in names:
        if not complete(arm, store, settings):
            continue
        found = scored(arm, store, data, settings, wanted)
        rate = store.read(arms.run_name(arm, settings.seeds[0]))["learning_rate"]
        means = [f"{sum(found[s]) / len(found[s]):.4g}" for s in wanted]
        lines.append([arm, *speed.cells((models or {}).get(arm, arm), store), f"{rate:g}", *means])
    return lines
