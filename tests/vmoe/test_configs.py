"""Every config that comes with vmoe: its docstring, its settings, and one step at reduced size."""

import ast
import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from vmoe.config import CheckpointConfig, DataConfig, ScheduleConfig, TrainConfig
from vmoe.data.ops import parse_ops
from vmoe.model import parameter_count
from vmoe.overrides import CONFIGS, load
from vmoe.schedules import make_schedule
from vmoe.state import init_state, make_train_step

FILES = {file.stem: file for file in sorted(CONFIGS.glob("[a-z]*.py"))}
SHAPE = (8, 8, 1)


def reduced(config: TrainConfig) -> TrainConfig:
    """One small block with the config's router, head, loss and optimiser; what is left out of it
    is equal for all, so that configs of one kind share one compiled step."""
    moe = config.model.moe
    if moe is not None:
        moe = replace(moe, num_experts=4, layers=(0,), group_images=min(4, moe.group_images))
    size = config.model.representation_size and 8
    model = replace(
        config.model, num_classes=10, patch_size=4, width=8, depth=1, mlp_dim=16, num_heads=2,
        representation_size=size, head_bias_init=0.0, moe=moe,
    )  # fmt: skip
    optim = replace(config.optim, lr=1e-3, schedule=ScheduleConfig(name="constant"))
    mixup = replace(config.mixup, concentration=0.2 if config.mixup.concentration else 0.0)
    return TrainConfig(
        loss=config.loss, mixup=mixup, model=model, optim=optim,
        label_smoothing=config.label_smoothing and 0.1,
        data=DataConfig(batch_size=8, eval_batch_size=8), checkpoint=CheckpointConfig(),
    ).validate()  # fmt: skip


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (8, *SHAPE)).astype(np.float32)
    return {"images": images, "labels": rng.integers(0, 10, 8, np.int32)}


@pytest.mark.parametrize("name", FILES)
def test_a_config_builds_and_its_step_can_be_traced(name):
    config = load(name)
    for field in ("train_ops", "test_ops"):
        parse_ops(field, getattr(config.data, field))
    schedule = make_schedule(config.optim.schedule, config.optim.lr, config.steps)
    rates = [float(schedule(step)) for step in (0, config.steps // 2, config.steps - 1)]
    assert 0 <= min(rates) <= max(rates) <= config.optim.lr * 1.000001

    shapes, metrics = traced(reduced(config))
    assert metrics["loss"].shape == ()
    assert shapes.params["head"]["kernel"].shape[1] == 10


@cache
def traced(config: TrainConfig):
    """The shapes that a step gives; the step is traced, but not compiled."""
    state = jax.eval_shape(lambda: init_state(config, SHAPE))
    return jax.eval_shape(make_train_step(config), state, batch())


@pytest.mark.nightly  # a compilation for each kind of config
@pytest.mark.parametrize("name", FILES)
def test_a_config_takes_one_step(name):
    before, state, metrics = stepped(reduced(load(name)))
    assert np.isfinite(metrics["loss"])
    moved = [
        (a != b).any()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True)
    ]
    assert sum(moved) > len(moved) / 2


@cache
def stepped(config: TrainConfig):
    state = init_state(config, SHAPE)
    before = jax.tree.map(np.asarray, state.params)
    return before, *make_train_step(config)(state, batch())


@pytest.mark.parametrize("name", FILES)
def test_a_docstring_has_the_command_and_what_to_expect(name):
    text = ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))
    assert re.search(rf"vmoe train --config=(vmoe/configs/{name}\.py|{name})\b", text)
    assert re.search(r"^Expected|Measured", text, re.MULTILINE)


@pytest.mark.parametrize(
    "name, million, side, channels",
    [
        ("vmoe_15b", 14705.1, 224, 3),
        ("soft_moe_s16", 933, 224, 3),  # arXiv:2308.00951, table 2
        ("soft_moe_b16", 3700, 224, 3),
    ],
)
def test_the_published_sizes(name, million, side, channels):
    count = parameter_count(load(name).model, (side, side, channels)) / 1e6
    assert abs(count / million - 1) < 0.01
