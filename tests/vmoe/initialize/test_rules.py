"""The rules' engine: first match, stacks, drops; nothing missing, nothing left, no wrong shape."""

import numpy as np
import pytest

from tests.vmoe.vectors import load
from vmoe.errors import UserError
from vmoe.init_config import InitFromConfig, Rule, for_model
from vmoe.initialize.rules import destination, initialised, natural, plan
from vmoe.model_config import MoEConfig
from vmoe.weights.leaf import leaf_of


def made(rules, source, target, fresh=()):
    leaves = {path: leaf_of(np.asarray(array)) for path, array in source.items()}
    return initialised(rules, fresh, leaves, {p: np.asarray(a) for p, a in target.items()})


def test_the_first_rule_that_is_found_counts():
    rules = [Rule("^old/", ""), Rule("Transformer", "Encoder"), Rule("Encoder", "Decoder")]
    assert destination(rules, "old/Transformer") == ("", rules[0])
    assert destination(rules, "Transformer/Encoder/x") == ("Encoder/Encoder/x", rules[1])
    assert destination(rules, "Encoder/x")[0] == "Decoder/x"
    assert destination(rules, "head/x") == ("head/x", None)
    assert destination([Rule(r"layer_(\d+)", r"l\1")], "a/layer_12/b")[0] == "a/l12/b"


def test_stack_is_in_natural_order():
    recorded = load("x1_initialization_rules")
    source = {f"l_{i}": recorded[f"stack/src/l_{i}"] for i in (10, 2, 0, 1)}
    got = made([Rule(r"l_\d+", "layers", "stack", (0,))], source, {"layers": np.ones((4, 2, 2))})
    np.testing.assert_array_equal(got["layers"], recorded["stack/out"])
    assert sorted(["a10", "a9", "b", "a9/10", "a9/9"], key=natural) == [
        "a9", "a9/9", "a9/10", "a10", "b",
    ]  # fmt: skip


def test_weights_have_the_models_dtype():
    got = made([], {"w": np.arange(3.0)}, {"w": np.zeros(3, np.float32)})
    assert got["w"].dtype == np.float32


def test_fresh_weights_are_not_taken():
    target = {"head/bias": np.zeros(2), "body": np.zeros(3)}
    source = {"head/bias": np.ones(5), "body": np.ones(3)}
    assert made([], source, target, fresh=("^head/",)).keys() == {"body"}


HEAD = {"head/kernel": np.ones((4, 1000)), "head/bias": np.ones(1000)}


@pytest.mark.parametrize(
    "rules, source, target, message",
    [
        ([], {"a": 1.0}, {"a": 1.0, "b/c": 1.0}, "the checkpoint has no b/c; fix: .*fresh"),
        ([], {"a": 1.0, "b": 1.0}, {"a": 1.0}, 'no place for b of the checkpoint; .*path=""'),
        ([], {f"a{i}": 1.0 for i in range(5)}, {}, "no place for a0, a1 and 3 more"),
        ([], {"a": [1.0]}, {"a": [1.0, 2.0]}, r"a is \[1\] in the checkpoint and \[2\]"),
        ([], HEAD, {"head/kernel": np.ones((4, 10)), "head/bias": np.ones(10)},
         "it has 1000 classes, and model.num_classes=10; fix: --config.init_from.fresh="),
        ([], {"a": [1]}, {"a": [1.0]}, "a is int64, the model's float64"),
        ([Rule("b", "a")], {"a": 1.0, "b": 1.0}, {"a": 1.0}, "a and b would both become a"),
        ([Rule("a", "a", "squeeze", (0,))], {"a": [1.0, 2.0]}, {"a": 1.0}, "cannot squeeze"),
    ],
)  # fmt: skip
def test_what_does_not_fit(rules, source, target, message):
    with pytest.raises(UserError, match=message):
        made(rules, source, target)


@pytest.mark.parametrize(
    "config, message",
    [
        (InitFromConfig(fresh=("(",)), r"the pattern '\(' is no regular expression"),
        (InitFromConfig(rules=(Rule("*", "a"),)), r"the pattern '\*' is no regular"),
        (InitFromConfig(rules=(Rule("a", r"\1"),)), "cannot replace 'a'"),
        (InitFromConfig(rules=(Rule("a", "b", "expandtile"),)), 'did you mean "expand_tile"'),
    ],
)
def test_a_config_that_cannot_work(config, message):
    with pytest.raises(UserError, match=message):
        config.validate()


def test_upcycling_touches_only_the_mlps_of_its_blocks():
    init = for_model(InitFromConfig(upcycle=True), MoEConfig(num_experts=3, layers=(1, 11)))
    paths = [f"Encoder/encoderblock_{i}/{name}" for i in (0, 1, 11) for name in ("Mlp/x", "LN/x")]
    moved = {use.sources[0]: path for path, use in plan(init.rules, paths).items()}
    assert {old for old, new in moved.items() if old != new} == {paths[2], paths[4]}
    assert moved[paths[2]] == "Encoder/encoderblock_1/Moe/Mlp/x"
