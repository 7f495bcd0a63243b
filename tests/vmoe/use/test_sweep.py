"""Sweeps: figures equal to evaluation's, work that falls with the budget, files, mistakes."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from vmoe.cli import main
from vmoe.commands import sweep as command
from vmoe.data import pipeline
from vmoe.evaluate import evaluate
from vmoe.inference import AS_TRAINED, Choices
from vmoe.use.sweep import settings, sweep
from vmoe.use.sweep_page import sweep_page, text_table


@pytest.fixture(scope="module")
def images(trained):
    return pipeline.load(trained.config.data)[1].first(100)


@pytest.fixture(scope="module")
def rows(trained, images):
    other = replace(trained, name="other", params=dict(trained.params))
    choose = partial(settings, base=AS_TRAINED, capacities=(0.5,), budgets=(1.0, 0.5))
    return sweep([trained, other], images, choose, rounds=2)


def test_each_setting_of_each_model_and_of_all_together(rows, trained):
    wanted = [
        "capacity 0.5, token order", "capacity 0.5, batch priority", "budget 1", "budget 0.5"
    ]  # fmt: skip
    assert [row.choices for row in rows] == 3 * wanted
    assert [row.model for row in rows[::4]] == [trained.name, "other", "all 2 together"]


def test_figures_equal_those_of_evaluate(rows, trained, images):
    """Over 100 images in batches of 80: the padding of the second counts nowhere."""
    report = evaluate(
        trained.config, trained.params, images, Choices(capacity=0.5, batch_priority=True)
    )
    row = rows[1]
    assert row.accuracy == pytest.approx(report.accuracy)
    assert row.loss == pytest.approx(report.loss, rel=1e-5)
    assert row.dropped == pytest.approx(report.dropped, abs=1e-6)


def test_half_the_budget_is_half_the_experts_work(rows):
    whole, half = rows[2:4]
    experts = 5 * 2 * 2 * 8 * 16  # tokens, choices, two products of 8 x 16
    assert whole.macs - half.macs == pytest.approx(experts / 2, rel=0.01)
    assert all(row.milliseconds == np.median(row.times) > 0 for row in rows)


def test_a_model_with_itself_says_what_it_says_alone(rows):
    for one, together in zip(rows[:4], rows[8:], strict=True):
        assert together.accuracy == one.accuracy
        assert together.loss == pytest.approx(one.loss, rel=1e-5)
        assert together.macs == pytest.approx(2 * one.macs)


def test_table_and_page_have_every_row(rows):
    lines = list(text_table(rows))
    assert sum("capacity 0.5, token order" in line for line in lines) == 3
    page = sweep_page("Sweep", "told", rows)
    assert page.count("<tr>") == 12 + 3
    assert page.count("<svg") == 3


def test_what_has_neither_capacity_nor_budget_is_measured_as_it_is(trained):
    dense = replace(trained.config.model, moe=None)
    assert settings(dense, AS_TRAINED, (1.0,), (0.5,)) == [AS_TRAINED]


def test_the_command_writes_what_it_prints(workdir, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "sweep", lambda models, images, *rest: rows[:2])
    check_command(workdir, tmp_path, capsys, 2)


@pytest.mark.nightly  # compiles what the rows above have in little
def test_the_command_measures(workdir, tmp_path, capsys):
    check_command(workdir, tmp_path, capsys, 5)


def check_command(workdir, tmp_path, capsys, count):
    flags = ["--capacities=1", "--rounds=1", f"--out={tmp_path}/out"]
    assert main(["sweep", str(workdir), *flags]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [f"{row['accuracy']:.2%}" in out for row in written] == [True] * count
    assert (tmp_path / "out" / "sweep.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["RUN", "--capacities=one"], "--capacities=one is no number"),
        (["RUN", "--capacities=0"], "eval_capacity_factor=0.0 must be positive"),
        (["RUN", "--budgets=2"], "--budget=2 is no share"),
        (["RUN", "--rounds=0"], "--rounds=0 times nothing"),
        (["RUN", "--budget=0.5"], "sweep varies capacity, priority and budget itself"),
        (["RUN", "--nobpr"], "sweep varies capacity, priority and budget itself"),
        (["nowhere"], "nowhere/config.json cannot be read"),
    ],
)
def test_a_mistake_is_one_line(flags, message, workdir, tmp_path, capsys):
    flags = [flag.replace("RUN", str(workdir)) for flag in flags]
    assert main(["sweep", *flags, f"--out={tmp_path}/out"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert not (tmp_path / "out").exists()
