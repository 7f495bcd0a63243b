"""bench/budget.py: the whole budget is the dropless model, none leaves the experts out."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import budget
from bench.__main__ import main
from vmoe import model
from vmoe.config import TrainConfig
from vmoe.model_config import ModelConfig, MoEConfig

MOE = MoEConfig(num_experts=4, layers=(1,), group_images=2)


@pytest.mark.parametrize("head", ["gap", "token"])
def test_budgets_fit_the_model_and_count(head, monkeypatch):
    config = ModelConfig(width=8, depth=2, mlp_dim=16, num_heads=2, head=head, moe=MOE)
    sparse = budget.dropless(config)
    params = model.init(sparse, jax.random.key(0), (8, 8, 1))
    images = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    plain, report = model.apply(sparse, params, images)
    asked = report["encoderblock_1"]["load"].sum()

    def run(share):
        inputs = budget.budgets(sparse, images, jnp.float32(share))
        return model.apply(sparse, params, images, moe_inputs=inputs)

    whole, _ = run(1.0)
    np.testing.assert_allclose(whole, plain, atol=1e-6)
    _, half = run(0.5)
    tokens = 2 * (4 + (head == "token"))  # of a group
    assert half["encoderblock_1"]["load"].sum() == asked * np.ceil(tokens / 2) / tokens
    _, none = run(0.0)
    assert none["encoderblock_1"]["load"].sum() == 0
    got = budget.classifier(TrainConfig(model=config))(params, images, jnp.float32(1.0))
    np.testing.assert_array_equal(got, plain.argmax(-1))


def test_rows_carry_accuracy():
    built = budget.Built(lambda share: share + 1, jnp.float32(1.0))
    rows = budget.rows_of(built, built.compiled, 3, accuracy=lambda share: float(share) / 2)
    assert [row.accuracy for row in rows] == [float(np.float32(b) / 2) for b in budget.BUDGETS]
    assert rows[0].ratio == 1.0
    assert rows[0].note == "accuracy 50.00%"


def test_quick_run_prints_every_budget(capsys, monkeypatch):
    small = replace(budget.QUICK, tokens=8, width=4, hidden=8)
    monkeypatch.setattr(budget, "QUICK", small)
    assert main(["budget", "--quick", "--allocator=default"]) == 0
    printed = capsys.readouterr().out
    assert all(f"budget {b:g}" in printed for b in budget.BUDGETS)


def test_steps_must_be_positive(capsys):
    assert main(["budget", "--steps=0"]) == 2
    assert "error: --steps=0" in capsys.readouterr().err
