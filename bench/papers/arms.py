"""Trains an arm: chooses its learning rate, then one run per seed, each with its predictions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.papers.jobs import Job, Report, silent
from bench.papers.predict import log_probabilities
from bench.papers.protocol import Settings, train_config
from bench.papers.store import Store
from vmoe.config import TrainConfig
from vmoe.data.idx import load_idx
from vmoe.data.images import Images
from vmoe.data.pipeline import training_batches
from vmoe.errors import RunError
from vmoe.state import TrainState, init_state, make_train_step

SEPARATOR = "/"


@dataclass(frozen=True)
class Data:
    """The images of the protocol: to train on, to choose a learning rate on, to test on."""

    train: Images
    held_out: Images
    test: Images


def load(path: str, settings: Settings) -> Data:
    """Reads the IDX files in a folder.

    Raises:
      UserError: if one is missing or damaged.
      ValueError: if there are too few images.
    """
    images, test = load_idx(path)
    first, second = settings.train_images, settings.train_images + settings.held_out
    if len(images) < second:
        raise ValueError(
            f"--data: {path} has {len(images)} training images, the protocol takes {second}; "
            "fix: the folder of Fashion-MNIST"
        )
    held_out = Images(images.images[first:second], images.labels[first:second], images.num_classes)
    return Data(images.first(first), held_out, test.first(settings.test_images))


def jobs(
    arm: str, store: Store, data: Data, settings: Settings, seeds: Sequence[int] | None = None
) -> Iterator[Job]:
    """What an arm still lacks: trial runs for its learning rate, then the runs of the seeds.

    The seeds are those of the settings unless others are given.
    """
    wanted = settings.seeds if seeds is None else seeds
    missing = [s for s in wanted if not store.has(run_name(arm, s))]
    if missing:
        yield from trials(arm, store, data, settings)
    for some in chunks(missing, settings):
        yield Job(
            f"runs/{arm}, seeds {', '.join(map(str, some))}",
            cost(settings) * len(some),
            partial(_runs, arm, some, store, data, settings),
        )


def trials(arm: str, store: Store, data: Data, settings: Settings) -> Iterator[Job]:
    """The trials of learning rates that an arm still lacks; of a single rate there is none."""
    for rate in settings.learning_rates if len(settings.learning_rates) > 1 else ():
        name = trial_name(arm, rate)
        if not store.has(name):
            yield Job(name, cost(settings), partial(_trial, arm, rate, store, data, settings))


def chunks(seeds: Sequence[int], settings: Settings) -> list[list[int]]:
    """The seeds that are trained together."""
    size = settings.together
    return [list(seeds[start : start + size]) for start in range(0, len(seeds), size)]


def cost(settings: Settings) -> float:
    """Of a job that trains one seed: a backward counts as two forwards."""
    return 3.0 * settings.steps * settings.batch_size


def run_name(arm: str, seed: int) -> str:
    """Where the store has a run."""
    return f"runs/{arm}-seed{seed}"


def trial_name(arm: str, rate: float) -> str:
    """Where the store has a trial of a learning rate."""
    return f"trials/{arm}-lr{rate:g}"


def learning_rate(arm: str, store: Store, settings: Settings) -> float:
    """The rate whose trial was better on the held-out images; the smaller one at a tie."""
    if len(settings.learning_rates) == 1:
        return settings.learning_rates[0]
    scores = {r: store.read(trial_name(arm, r))["accuracy"] for r in settings.learning_rates}
    return max(sorted(scores), key=lambda rate: scores[rate])


def params_of(arm: str, seed: int, store: Store) -> Any:
    """The trained weights of a run."""
    tree: dict[str, Any] = {}
    for path, value in store.arrays(run_name(arm, seed)).items():
        kind, *keys = path.split(SEPARATOR)
        if kind == "params":
            node = tree
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = jnp.asarray(value)
    return tree


def train(
    config: TrainConfig, images: Images, seeds: Sequence[int], report: Report = silent
) -> list[TrainState]:
    """The state of each seed after its last step, all seeds in one program."""
    states = [init_state(replace(config, seed=seed), images.shape) for seed in seeds]
    return steps(config, images, states, seeds, report)


def steps(
    config: TrainConfig,
    images: Images,
    states: Sequence[TrainState],
    orders: Sequence[int],
    report: Report = silent,
) -> list[TrainState]:
    """The states after config.steps steps, on batches in the orders of these seeds.

    Vmoe's own step on its own batches; without its working folder, whose checkpoints and events
    would take longer than these runs.

    Raises:
      RunError: if a loss is not finite.
    """
    streams = [training_batches(images, config.data, order) for order in orders]
    state = _stacked(states)
    step = jax.jit(jax.vmap(make_train_step(config)), donate_argnums=0)
    for number in range(1, config.steps + 1):
        state, metrics = step(state, _stacked([next(stream) for stream in streams]))
        if number % 50 == 0 or number == config.steps:
            losses = np.asarray(metrics["loss"])
            if not np.isfinite(losses).all():
                raise RunError(f"step {number}: loss {losses} of the orders {list(orders)}")
            report(f"step {number}/{config.steps}  loss {losses.mean():.4f}", number / config.steps)
    return [jax.tree.map(lambda leaf, n=n: leaf[n], state) for n in range(len(states))]


def keep(
    arm: str, config: TrainConfig, params: Any, store: Store, data: Data, settings: Settings
) -> None:
    """Puts a run into the store: its weights, and its predictions on the test images."""
    found, dropped = log_probabilities(config.model, params, data.test.images, settings.eval_batch)
    numbers = {
        "arm": arm, "seed": config.seed, "learning_rate": config.optim.lr, "steps": config.steps,
        "accuracy": float(np.mean(np.argmax(found, -1) == data.test.labels)), "dropped": dropped,
    }  # fmt: skip
    arrays = _flat(params) | {"log_probabilities": found}
    store.write(run_name(arm, config.seed), numbers, arrays)


def _trial(
    arm: str, rate: float, store: Store, data: Data, settings: Settings, report: Report
) -> None:
    config = train_config(arm, rate, settings.tuning_seed, settings)
    (state,) = train(config, data.train, [settings.tuning_seed], report)
    images, labels = data.held_out.images, data.held_out.labels
    found, _ = log_probabilities(config.model, state.params, images, settings.eval_batch)
    right = np.argmax(found, -1) == labels
    store.write(trial_name(arm, rate), {"accuracy": float(np.mean(right)), "images": len(right)})


def _runs(
    arm: str, seeds: list[int], store: Store, data: Data, settings: Settings, report: Report
) -> None:
    rate = learning_rate(arm, store, settings)
    configs = [train_config(arm, rate, seed, settings) for seed in seeds]
    trained = train(configs[0], data.train, seeds, report)
    for config, state in zip(configs, trained, strict=True):
        keep(arm, config, state.params, store, data, settings)


def _flat(params: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        SEPARATOR.join(("params", *(str(key.key) for key in path))): np.asarray(leaf)
        for path, leaf in leaves
    }


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
