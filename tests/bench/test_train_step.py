"""bench/train_step.py: the dense model costs the same, steps train, a recompilation is counted."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import train_step
from bench.__main__ import main
from vmoe.model_config import ModelConfig, MoEConfig, RouterConfig


def token_flops(model: ModelConfig) -> float:
    """Of the MLPs, experts and routers, block by block."""
    total = 0.0
    for block in range(model.depth):
        mlp = 4 * model.width * model.mlp_dim
        if model.is_sparse(block):
            mlp = mlp * model.moe.router.k + 2 * model.width * model.moe.num_experts
        total += mlp
    return total


@pytest.mark.parametrize("name", train_step.CASES)
def test_the_dense_model_costs_the_same(name):
    case = train_step.CASES[name]()
    dense = case.dense.config.model
    assert dense.moe is None
    # A hidden width is a whole number: half of one in every block is the most it can be off.
    off = abs(token_flops(dense) - token_flops(case.config.model))
    assert off <= 4 * dense.width * dense.depth / 2


def test_with_one_choice_only_the_router_is_added():
    moe = MoEConfig(num_experts=8, layers=(1,), router=RouterConfig(k=1))
    model = ModelConfig(width=16, depth=2, mlp_dim=32, num_heads=2, moe=moe)
    assert train_step.dense_of_equal_flops(model).mlp_dim == 34  # 32 + 8 experts / 2 / 2 blocks


def test_a_step_trains_and_compiles_once(monkeypatch):
    step = train_step.Step(train_step.quick_case())
    before = jax.tree.map(np.array, step._state.params)
    for _ in range(3):
        step.run()
    assert step._recompiled == 0
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, step._state.params)
    assert any(jax.tree.leaves(changed))
    step._batch = {name: jnp.concatenate([a, a]) for name, a in step._batch.items()}
    step.run()
    assert step._recompiled > 0


def test_quick_run_prints_speed(capsys, monkeypatch):
    case = train_step.quick_case()
    model = replace(case.config.model, depth=1, moe=replace(case.config.model.moe, layers=(0,)))
    small = replace(case, config=replace(case.config, model=model))
    monkeypatch.setattr(train_step, "quick_case", lambda: small)
    flags = ["--quick", "--formats=slots", "--allocator=default"]
    assert main(["train_step", *flags]) == 0
    printed = capsys.readouterr().out
    assert "images/s, 0 recompiled" in printed
    assert "dense" in printed
    assert "slots" in printed
