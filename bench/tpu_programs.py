"""Whole programs to compile for a TPU: a training step of a V-MoE."""

import functools
from dataclasses import replace
from unittest import mock

import jax

import moegen
from bench.train_step import Case as TrainCase
from bench.train_step import batch_of, small_case, with_format
from moegen.tune.tpu_cases import Case
from vmoe.state import init_state, make_train_step


def train_step(target: str, batch_size: int = 32, format: str = "sorted") -> Case:
    """One step of V-MoE-S/32 on 224 x 224 images, its layers lowered for the target."""
    case = with_format(small_case(), format)
    data = replace(case.config.data, batch_size=batch_size)
    case = TrainCase(replace(case.config, data=data), case.image)
    config = case.config.validate()
    lowered_for = functools.partial(moegen.Schedule, target=target)

    def step(state, batch):
        with mock.patch.object(moegen, "Schedule", lowered_for):
            return make_train_step(config)(state, batch)

    shapes = [
        jax.eval_shape(lambda: init_state(config, case.image)),
        jax.eval_shape(lambda: batch_of(config, case.image)),
    ]
    return step, shapes
