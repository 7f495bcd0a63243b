"""Every rule of a model's settings: what is wrong, and the fix."""

from dataclasses import replace

import pytest

from vmoe.errors import UserError
from vmoe.model_config import LoweringConfig, ModelConfig, MoEConfig, RouterConfig

GOOD = ModelConfig(moe=MoEConfig())


def with_moe(**changes) -> ModelConfig:
    return replace(GOOD, moe=replace(GOOD.moe, **changes))


def with_lowering(**changes) -> ModelConfig:
    return with_moe(lowering=LoweringConfig(**changes))


def with_router(**changes) -> ModelConfig:
    return with_moe(router=replace(RouterConfig(), **changes))


def test_the_defaults_are_valid_and_hashable():
    assert GOOD.validate() is GOOD
    assert ModelConfig().validate().moe is None
    assert hash(GOOD) == hash(ModelConfig(moe=MoEConfig()))


def test_which_blocks_are_sparse():
    assert [GOOD.is_sparse(i) for i in range(4)] == [False, True, False, True]
    assert not ModelConfig().is_sparse(1)


@pytest.mark.parametrize(
    "config, message",
    [
        (replace(GOOD, width=66), r"width=66 is not a multiple of num_heads=4; fix: .*width=68"),
        (replace(GOOD, width=0), r"width=0 must be a whole number; fix: give 1 or more"),
        (replace(GOOD, depth=2.5), r"depth=2.5 must be a whole number"),
        (replace(GOOD, representation_size=0), r"representation_size=0 must be"),
        (replace(GOOD, head="tokens"), r'head="tokens" is unknown; fix: did you mean "token"'),
        (replace(GOOD, head="pool"), r"use one of token, gap, map"),
        (replace(GOOD, position="sincos"), r'did you mean "sincos2d"'),
        (replace(GOOD, dtype="bf16"), r'dtype="bf16" is unknown; fix: .*bfloat16'),
        (replace(GOOD, dropout=1.0), r"dropout=1.0 is no dropout rate; fix: 0 <= dropout < 1"),
        (replace(GOOD, attention_dropout=-0.1), r"attention_dropout=-0.1 is no dropout rate"),
        (
            replace(GOOD, width=6, num_heads=1, position="sincos2d"),
            r"a multiple of 4 and at least 8, not 6",
        ),
        (
            replace(GOOD, width=4, num_heads=1, position="sincos2d"),
            r"a multiple of 4 and at least 8, not 4",
        ),
        (with_moe(layers=(1, 4)), r"moe.layers has block 4, but depth=4 has blocks 0 to 3"),
        (with_moe(layers=(-1,)), r"moe.layers has block -1"),
        (with_moe(layers=[1]), r"moe.layers=\[1\] is no tuple of block numbers; fix: .*\(1, 3\)"),
        (with_moe(layers=("1",)), r"is no tuple of block numbers"),
        (with_moe(layers=()), r"at least one block, .*fix: moe=None"),
        (with_moe(layers=(1, 1)), r"each block once"),
        (with_moe(num_experts=0), r"moe.num_experts=0 must be"),
        (with_moe(group_images=0), r"moe.group_images=0 must be"),
        (with_moe(dropout=2.0), r"moe.dropout=2.0 is no dropout rate"),
        (with_moe(format="slot"), r'moe.format="slot" is unknown; fix: did you mean "slots"'),
        (with_moe(format="sorted", dropout=0.1), r'"sorted" has no .* fix: moe.format="auto"'),
        (with_lowering(save="lest"), r'moe.lowering.save="lest" is unknown; fix: .*"least"'),
        (with_lowering(exchange="block"), r'did you mean "blocks"'),
        (with_lowering(overlap="rings"), r'did you mean "ring"'),
        (with_lowering(overlap=0), r"moe.lowering.overlap=0 must be"),
        (with_router(name="noisy_topk"), r'did you mean "noisy_top_k"'),
        (with_router(k=9), r"k=9 is more than moe.num_experts=8; fix: pick k <= 8"),
        (with_router(k=0), r"moe.router.k=0 must be"),
        (with_router(capacity_factor=0.0), r"capacity_factor=0.0 must be positive"),
        (with_router(eval_capacity_factor=-1.0), r"eval_capacity_factor=-1.0 must be positive"),
        (with_router(noise_std=-1.0), r"noise_std=-1.0 is negative; fix: 0 turns it off"),
        (with_router(load_loss_weight=-1.0), r"load_loss_weight=-1.0 is negative"),
        (with_router(capacity_factor=float("nan")), r"capacity_factor=nan must be positive"),
    ],
)
def test_a_broken_rule_names_the_field_and_the_fix(config, message):
    with pytest.raises(UserError, match=message):
        config.validate()
