"""What an arm costs beside the dense one: multiply-adds, and milliseconds taken in turns."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bench.papers.arms import Data
from bench.papers.jobs import Job, Report
from bench.papers.predict import classify
from bench.papers.protocol import ARMS, Settings, train_config
from bench.papers.store import Store
from bench.timing import Timing, compare
from vmoe import model
from vmoe.model_config import ModelConfig
from vmoe.state import init_state, make_train_step
from vmoe.use.macs import has_data_dependent_products, static_macs

YARDSTICK = "dense"
ROUNDS = 15


def jobs(names: Sequence[str], store: Store, data: Data, settings: Settings) -> Iterator[Job]:
    """The measurements that are missing."""
    for arm in names:
        if not store.has(speed_name(arm)):
            yield Job(
                speed_name(arm),
                8 * ROUNDS * settings.eval_batch,
                partial(_measure, arm, store, data, settings),
            )


def speed_name(arm: str) -> str:
    """Where the store has what an arm costs."""
    return f"speed/{arm}"


def macs_per_image(config: ModelConfig, image: tuple[int, int, int], images: int) -> float:
    """Multiply-adds of a forward of `images` images, per image: of the products executed.

    Raises:
      ValueError: if only the data says how many there are.
    """
    params = jax.eval_shape(lambda key: model.init(config, key, image), jax.random.key(0))
    batch = jax.ShapeDtypeStruct((images, *image), jnp.float32)
    traced = jax.make_jaxpr(lambda p, x: model.apply(config, p, x)[0])(params, batch).jaxpr
    if has_data_dependent_products(traced):
        raise ValueError("a dropless layer's products depend on the data; fix: give it a capacity")
    return static_macs(traced) / images


def cells(arm: str, store: Store) -> list[str]:
    """Of a table: MMAC per image, then milliseconds and their ratio, forward and in training."""
    if not store.has(speed_name(arm)):
        return ["", "", ""]
    found = store.read(speed_name(arm))
    timed = (
        f"{found[what]['ms']:.1f} ({found[what]['ratio']:.2f})" for what in ("forward", "step")
    )
    return [f"{found['macs'] / 1e6:.3f}", *timed]


HEAD = ["MMAC", "ms forward (ratio)", "ms step (ratio)"]
"""The head of `cells`."""


def _measure(arm: str, store: Store, data: Data, settings: Settings, report: Report) -> None:
    both = (YARDSTICK, arm)
    forward = _compared(_forward, both, data, settings)
    report("forward", 0.5)
    step = _compared(_step, both, data, settings)
    macs = macs_per_image(ARMS[arm], data.test.shape, settings.eval_batch)
    numbers = {"macs": macs, "forward": _numbers(forward), "step": _numbers(step)}
    store.write(speed_name(arm), numbers)


def _compared(
    make: Callable[[str, Data, Settings], Callable[[], Any]],
    both: tuple[str, str],
    data: Data,
    settings: Settings,
) -> list[Timing]:
    yardstick, own = (make(name, data, settings) for name in both)
    return compare(yardstick, {both[1]: own}, ROUNDS, both[0])


def _numbers(timings: Sequence[Timing]) -> dict[str, float]:
    yardstick, own = timings
    return {
        "ms": own.median_ms, "yardstick_ms": yardstick.median_ms, "ratio": own.ratio,
        "low": own.ratio_low, "high": own.ratio_high,
    }  # fmt: skip


def _forward(arm: str, data: Data, settings: Settings) -> Callable[[], Any]:
    params = init_state(train_config(arm, 0.001, 0, settings), data.test.shape).params
    images = jnp.asarray(data.test.images[: settings.eval_batch])
    return lambda: classify(ARMS[arm], params, images, None)


def _step(arm: str, data: Data, settings: Settings) -> Callable[[], Any]:
    config = train_config(arm, 0.001, 0, settings)
    step, held = make_train_step(config), [init_state(config, data.train.shape)]
    batch = data.train.batch(slice(0, settings.batch_size))
    batch = {name: jnp.asarray(batch[name]) for name in ("images", "labels")}

    def run() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    return run
