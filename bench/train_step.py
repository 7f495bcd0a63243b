"""A V-MoE's training step against that of a dense ViT of equal FLOPs per image.

The dense model is the same ViT with its MLPs widened until they cost what experts and routers do.
A step has everything a run has: losses, gradients, clipping and the optimiser.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp

from bench import suite
from bench.report import Row
from bench.timing import Timing, compare
from vmoe.config import DataConfig, OptimConfig, TrainConfig
from vmoe.configs import demo
from vmoe.model_config import ModelConfig, MoEConfig
from vmoe.state import init_state, make_train_step
from vmoe.variants import variant

COMPILED = "/jax/core/compile/backend_compile_duration"
"""The event that JAX reports for each program it compiles."""


@dataclass(frozen=True)
class Case:
    """A model with the images it is trained on.

    Attributes:
      config: the run; its model is sparse.
      image: (height, width, channels).
    """

    config: TrainConfig
    image: tuple[int, int, int]

    @property
    def dense(self) -> "Case":
        """The dense model of equal FLOPs, trained the same way."""
        model = dense_of_equal_flops(self.config.model)
        return replace(self, config=replace(self.config, model=model))


@dataclass(frozen=True)
class StepRow(Row):
    """A line of this suite.

    Attributes:
      images_per_second: at the median time.
      recompiled: programs compiled while it was timed; anything but 0 is a fault.
    """

    images_per_second: float = 0.0
    recompiled: int = 0


def dense_of_equal_flops(model: ModelConfig) -> ModelConfig:
    """The ViT whose MLPs cost, over all blocks, what the MLPs, experts and routers of `model` do.

    With n of the depth's blocks sparse and E experts, a token costs 4 D F in a dense block and
    4 D F k + 2 D E in a sparse one; padding, drops and the moving of rows are not counted.
    """
    moe = model.moe
    if moe is None:
        raise ValueError("the model is dense already; fix: give one with moe=")
    sparse = len(moe.layers)
    hidden = (model.depth - sparse) * model.mlp_dim
    per_token = moe.router.k * (moe.mlp_dim or model.mlp_dim)
    hidden += sparse * (per_token + moe.num_experts / 2)
    return replace(model, moe=None, mlp_dim=round(hidden / model.depth))


def demo_case() -> Case:
    """The model and batch of `vmoe demo`."""
    return Case(demo.get_config(), (8, 8, 1))


def small_case() -> Case:
    """V-MoE-S/32 with experts in its last 2 odd blocks, 32 images of 224 x 224."""
    model = variant("V-MoE-S/32", "last-2")
    config = TrainConfig(model=model, data=DataConfig(batch_size=32), optim=OptimConfig())
    return Case(config, (224, 224, 3))


def quick_case() -> Case:
    """One that compiles in seconds."""
    moe = MoEConfig(num_experts=4, layers=(1,), group_images=4)
    model = ModelConfig(width=16, depth=2, mlp_dim=32, num_heads=2, moe=moe)
    return Case(TrainConfig(model=model, data=DataConfig(batch_size=8)), (8, 8, 1))


CASES: dict[str, Callable[[], Case]] = {"demo": demo_case, "S32": small_case}
FORMATS = ("auto", "onehot", "slots", "sorted")
USUAL = ("auto", "slots")
QUICK = ("auto",)
"""What --quick runs instead of the usual formats: each takes 20 seconds to compile."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this suite's flags to its subcommand."""
    suite.add_arguments(parser, quick="one tiny model: not a result")
    for name, known, default in (
        ("models", tuple(CASES), tuple(CASES)),
        ("formats", FORMATS, USUAL),
    ):
        parser.add_argument(
            f"--{name}", type=partial(suite.chosen, name, known), default=default,
            metavar="NAME,...",
            help=f"some of {', '.join(known)} (default: {','.join(default)})",
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure the models, one table each; returns the exit code."""
    cases = {"quick": quick_case} if arguments.quick else {n: CASES[n] for n in arguments.models}
    formats = QUICK if arguments.quick and arguments.formats == USUAL else arguments.formats
    todo = {name: partial(measure, case, formats) for name, case in cases.items()}
    return suite.run("train_step", arguments, todo)


def measure(make: Callable[[], Case], formats: tuple[str, ...], rounds: int) -> list[Row]:
    """The dense step and the sparse one in each format, interleaved; ratios to the dense one."""
    case = make()
    made = {"dense": Step(case.dense)}
    made |= {name: Step(with_format(case, name)) for name in formats}
    candidates = {name: made[name].run for name in formats}
    timings = compare(made["dense"].run, candidates, rounds, "dense")
    return [made[timing.name].row(timing) for timing in timings]


def with_format(case: Case, name: str) -> Case:
    """The same with the routing decision stored that way."""
    model = case.config.model
    assert model.moe is not None
    model = replace(model, moe=replace(model.moe, format=name))
    return replace(case, config=replace(case.config, model=model))


class Step:
    """A training run's compiled step with its state; `run` takes one step."""

    def __init__(self, case: Case):
        config = case.config.validate()
        self._images, self._calls, self._recompiled = config.data.batch_size, 0, 0
        self._state = init_state(config, case.image)
        self._batch = batch_of(config, case.image)
        self._step = make_train_step(config)
        start = time.perf_counter()
        whole = jax.jit(self._step, donate_argnums=0)
        memory = whole.lower(self._state, self._batch).compile().memory_analysis()
        self._compile_seconds = time.perf_counter() - start
        self._temporary_mb = memory.temp_size_in_bytes / 1e6 if memory is not None else None
        self._running = False
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def run(self) -> Any:
        """Takes a step; what is compiled in all but the first counts as recompiled."""
        self._running = self._calls > 0
        self._state, metrics = self._step(self._state, self._batch)
        self._running = False
        self._calls += 1
        return self._state.params, metrics

    def _note(self, event: str, duration: float, **_: Any) -> None:
        self._recompiled += self._running and event == COMPILED

    def row(self, timing: Timing) -> StepRow:
        """The line of the table for a timing of this step."""
        speed = self._images / timing.median_ms * 1e3
        return StepRow(
            **asdict(timing),
            compile_seconds=self._compile_seconds, temporary_mb=self._temporary_mb,
            note=f"{speed:.0f} images/s, {self._recompiled} recompiled",
            images_per_second=speed, recompiled=self._recompiled,
        )  # fmt: skip


def batch_of(config: TrainConfig, image: tuple[int, int, int]) -> dict[str, jax.Array]:
    """Random images f32[N, H, W, C] in [-1, 1] with random labels i32[N]."""
    keys = jax.random.split(jax.random.key(0))
    size = config.data.batch_size
    return {
        "images": jax.random.uniform(keys[0], (size, *image), minval=-1.0),
        "labels": jax.random.randint(keys[1], (size,), 0, config.model.num_classes, jnp.int32),
    }
