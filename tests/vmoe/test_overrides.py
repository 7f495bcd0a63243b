"""Config files and --config flags: what is taken, and what each mistake says."""

from dataclasses import replace

import pytest
from ml_collections import config_dict

from vmoe.config import OptimConfig, TrainConfig
from vmoe.errors import UserError
from vmoe.model_config import ModelConfig, MoEConfig
from vmoe.overrides import CONFIGS, bind, load, with_overrides

CONFIG = TrainConfig(model=ModelConfig(moe=MoEConfig()))


def changed(*flags: str) -> TrainConfig:
    return with_overrides(CONFIG, flags)


@pytest.mark.parametrize(
    "flags, read, value",
    [
        (["--config.optim.lr=1e-3"], lambda c: c.optim.lr, 1e-3),
        (["--config.optim.lr", "0.5"], lambda c: c.optim.lr, 0.5),
        (["--config.optim.lr=1"], lambda c: c.optim.lr, 1.0),
        (["--config.steps=3", "--config.steps=4"], lambda c: c.steps, 4),
        (["--config.optim.nesterov"], lambda c: c.optim.nesterov, True),
        (["--config.optim.nesterov=false"], lambda c: c.optim.nesterov, False),
        (["--config.workdir=2024"], lambda c: c.workdir, "2024"),
        (["--config.model.moe.layers=(0, 2)"], lambda c: c.model.moe.layers, (0, 2)),
        (["--config.model.moe.router.batch_priority=True"],
         lambda c: c.model.moe.router.batch_priority, True),
        (["--config.model.moe.router.eval_capacity_factor=0.5"],
         lambda c: c.model.moe.router.eval_capacity_factor, 0.5),
        (["--config.model.moe.lowering.overlap=4"], lambda c: c.model.moe.lowering.overlap, 4),
        (["--config.model.moe.lowering.overlap=ring"],
         lambda c: c.model.moe.lowering.overlap, "ring"),
        (["--config.optim.clip_norm=None"], lambda c: c.optim.clip_norm, None),
        (["--config.optim.weight_decay=(('.*/kernel', 0.1),)"],
         lambda c: c.optim.weight_decay, ((".*/kernel", 0.1),)),
    ],
)  # fmt: skip
def test_a_flag_changes_its_field(flags, read, value):
    config = changed(*flags)
    assert read(config) == value
    assert type(read(config)) is type(value)


def test_a_flag_changes_nothing_else():
    assert changed("--config.steps=7") == replace(CONFIG, steps=7)
    assert changed() == CONFIG


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.optim.lrr=1", r"no field optim\.lrr; fix: did you mean optim\.lr\?"),
        ("--config.optm.lr=1", r"no field optm; fix: did you mean optim\?"),
        ("--config.model.moe.router.capacity=1", r"did you mean model\.moe\.router\.capacity_fac"),
        ("--config.zzzzzz=1", r"no field zzzzzz; fix: the config has seed, workdir"),
        ("--config.optim.lr=fast", r"optim\.lr='fast' is a str, not a float"),
        ("--config.steps=1.5", r"steps=1\.5 is a float, not a int"),
        ("--config.steps=True", r"steps=True is a bool, not a int"),
        ("--config.model.moe.layers=1", r"model\.moe\.layers=1 is a int, not a tuple of int"),
        ("--config.model.moe.layers=(1,'a')", r"model\.moe\.layers\[1\]='a' is a str, not a int"),
        ("--config.optim.weight_decay=(('a',),)", r"optim\.weight_decay\[0\]=.* 1 entries, not 2"),
        ("--config.optim.schedule=constant", r"optim\.schedule is a group of fields; fix: set one"),
        ("--config.steps.more=1", r"steps has no fields; fix: --config\.steps=VALUE"),
        ("--config.steps", r"steps"),
    ],
)
def test_a_wrong_flag_is_named(flag, message):
    with pytest.raises(UserError, match=message) as error:
        changed(flag)
    assert "\n" not in str(error.value)


def test_a_field_of_a_group_that_is_none():
    dense = TrainConfig(model=ModelConfig())
    with pytest.raises(UserError, match=r"model\.moe is None, so it has no field 'num_experts'"):
        with_overrides(dense, ["--config.model.moe.num_experts=4"])


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.loss=softmx", r'loss="softmx" is unknown; fix: did you mean "softmax"\?'),
        ("--config.steps=0", r"steps=0 must be 1 or more"),
        ("--config.seed=-1", r"seed=-1 is negative"),
        ("--config.data.batch_size=60", r"data\.batch_size=60 is not a multiple .*batch_size=64"),
        ("--config.model.width=30", r"model\.width=30 is not a multiple of num_heads=4"),
        ("--config.optim.b1=1.0", r"optim\.b1=1\.0 is no decay rate"),
        ("--config.optim.clip_norm=0", r"optim\.clip_norm=0\.0 must be positive"),
        ("--config.optim.lr=nan", r"optim\.lr='nan' is a str, not a float"),
        ("--config.label_smoothing=1", r"label_smoothing=1\.0 is no share"),
    ],
)  # fmt: skip
def test_settings_that_do_not_hold(flag, message):
    with pytest.raises(UserError, match=message):
        load("demo", [flag])


def test_a_file_may_return_a_dict_or_a_config_dict(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("def get_config():\n  return {'steps': 5, 'optim': {'lr': 1}}\n")
    assert load(str(file)) == TrainConfig(steps=5, optim=OptimConfig(lr=1.0))
    wanted = config_dict.ConfigDict({"steps": 5, "optim": {"lr": 1.0}})
    assert bind(TrainConfig, wanted) == TrainConfig(steps=5, optim=OptimConfig(lr=1.0))


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n  return {'stepps': 5}", r"did you mean steps\?"),
        ("def get_config():\n  return {'optim': {'lr': 'a'}}", r"optim\.lr='a' is a str"),
        ("def get_config():\n  return {'optim': 3}", r"optim=3 is a int, not a group of fields"),
        ("def get_config():\n  return 1 / 0", r"ZeroDivisionError: division by zero"),
        ("x = 1", r"AttributeError: .*get_config"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "c.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load(str(file))


def test_a_missing_file_lists_the_configs():
    with pytest.raises(UserError, match=r"no/such\.py does not exist; fix: .*demo"):
        load("no/such.py")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("[a-z]*.py")), ids=lambda f: f.stem)
def test_every_config_that_ships_is_valid(file):
    assert load(str(file)) == load(file.stem)
