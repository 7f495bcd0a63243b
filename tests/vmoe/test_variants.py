"""The published models by name, and what "every", "last" and "final" mean."""

import pytest

from vmoe.errors import UserError
from vmoe.model_config import MoEConfig, RouterConfig
from vmoe.variants import NAMES, every, final, last, moe_layers, variant


def test_placements_of_the_paper_and_of_its_successors():
    assert every(2, 8) == (1, 3, 5, 7)
    assert every(3, 8) == (2, 5)
    assert last(2, 8) == (5, 7)  # the last odd blocks
    assert last(5, 32) == (23, 25, 27, 29, 31)
    assert final(6, 12) == (6, 7, 8, 9, 10, 11)  # consecutive


def test_placement_by_name():
    assert moe_layers("every-2", 12) == (1, 3, 5, 7, 9, 11)
    assert moe_layers("last-2", 12) == (9, 11)
    assert moe_layers("final-2", 12) == (10, 11)


@pytest.mark.parametrize("placement", ["", "last", "last-0", "last--1", "lest-2", "last-x"])
def test_an_unknown_placement_says_what_is_known(placement):
    with pytest.raises(UserError, match=r"unknown; fix: use every-n, last-n"):
        moe_layers(placement, 8)


@pytest.mark.parametrize("placement", ["last-5", "final-9", "every-9"])
def test_a_placement_larger_than_the_model(placement):
    with pytest.raises(UserError, match=r"needs more blocks than depth=8"):
        moe_layers(placement, 8)


def test_the_small_model_of_the_paper():
    config = variant("V-MoE-S/32", "last-2", num_classes=10)
    assert (config.width, config.depth, config.mlp_dim, config.num_heads) == (512, 8, 2048, 8)
    assert (config.patch_size, config.representation_size, config.num_classes) == (32, 512, 10)
    assert (config.moe.num_experts, config.moe.layers, config.moe.router.k) == (32, (5, 7), 2)


def test_every_name_gives_a_valid_config():
    for name in NAMES:
        assert (variant(name).moe is None) == name.startswith("ViT")


def test_a_size_with_one_patch_needs_no_patch_in_its_name():
    assert variant("V-MoE-15B") == variant("V-MoE-15B/14")


def test_experts_and_other_fields_can_be_changed():
    moe = MoEConfig(num_experts=8, router=RouterConfig(k=1))
    config = variant("V-MoE-B/16", "last-2", moe=moe, head="gap", dtype="bfloat16")
    assert (config.moe.num_experts, config.moe.router.k, config.moe.layers) == (8, 1, (9, 11))
    assert (config.head, config.dtype) == ("gap", "bfloat16")


@pytest.mark.parametrize(
    "name, nearest",
    [("V-MoE-S32", "V-MoE-S/32"), ("VMoE-B/16", "V-MoE-B/16"), ("ViT-G/14", "ViT-H/14")],
)
def test_an_unknown_name_gets_the_nearest_real_one(name, nearest):
    with pytest.raises(UserError, match=f'unknown; fix: did you mean "{nearest}"'):
        variant(name)


def test_a_size_with_two_patches_must_name_one():
    with pytest.raises(UserError, match="unknown; fix:"):
        variant("ViT-B")


def test_a_dense_model_takes_no_placement():
    with pytest.raises(UserError, match=r'ViT-S/32 is dense .* use "V-MoE"'):
        variant("ViT-S/32", "last-2")
