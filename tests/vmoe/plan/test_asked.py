"""What is planned: published models, runs of a config, and the mistakes of either."""

import pytest

from vmoe.cli import main
from vmoe.errors import UserError
from vmoe.plan.asked import Request, asked, pretraining
from vmoe.variants import NAMES

GIVEN = {"model": "V-MoE-15B", "topology": "v5p:8x8x8", "mesh": "data=16,expert=32"}


@pytest.mark.parametrize("name", NAMES)
def test_every_published_model_has_a_recipe(name):
    config = pretraining(name).validate()
    assert config.optim.name == ("adafactor" if "15B" in name else "adam")
    assert config.data.batch_size == 4096
    assert config.model.dtype == "bfloat16"


def test_flags_and_overrides_change_the_run():
    given = {**GIVEN, "batch": "8192", "depth": "4"}
    made = asked(Request(given, ["--config.optim.name=sgd"], (448, 448, 3)))
    assert made.config.data.batch_size == 8192
    assert made.config.optim.name == "sgd"
    assert made.config.mesh == (("data", 16), ("expert", 32))
    assert (made.config.model.depth, made.whole_depth) == (4, 48)
    assert made.config.model.moe.layers == (1, 3)
    assert made.image == (448, 448, 3)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"mesh": "data=16"}, "is of 16 devices, v5p:8x8x8 has 512"),
        ({"mesh": "data=16,pipe=32"}, "no axis pipe"),
        ({"mesh": "data:16"}, "no list of AXIS=SIZE"),
        ({"topology": "v5p:8x8"}, "does not have 3 sizes"),
        ({"model": "V-MoE-15"}, 'model "V-MoE-15" is unknown'),
        ({"config": "demo"}, "either --model or --config"),
        ({"batch": "many"}, "--batch=many is no number"),
        ({"batch": "1000"}, "batch_size=1000 has no 512 equal parts"),
        ({"depth": "1"}, "--depth=2 or more"),
        ({"depth": "49"}, "1 to 48 blocks"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(change, says, capsys, tmp_path):
    output = tmp_path / "plan.json"
    flags = {**GIVEN, "output": str(output), **change}
    assert main(["plan", "--nocompile", *(f"--{n}={v}" for n, v in flags.items())]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not output.exists()


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="--topology is missing"):
        asked(Request({"model": "V-MoE-15B"}))
