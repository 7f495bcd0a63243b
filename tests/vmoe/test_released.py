"""The seven published models: a checkpoint of each maps onto our tree with nothing left over."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.vmoe.vectors import paths
from vmoe import model
from vmoe.init_config import Rule
from vmoe.initialize.layouts import LAYOUTS, in_names_of, in_our_names, layout_of
from vmoe.initialize.rules import initialised
from vmoe.layers.params import Params
from vmoe.released import RELEASED, Released
from vmoe.variants import variant
from vmoe.weights import files
from vmoe.weights.leaf import Leaf, Leaves, leaf_of

S32, S32_TUNED, _, B16, B16_TUNED, E3, E3_TUNED = RELEASED


def checkpoint(tree: Params) -> Leaves:
    """A checkpoint of a tree of shapes, all zeros that take no memory."""
    return {
        path: Leaf(leaf.shape, np.dtype(leaf.dtype), lambda s=leaf.shape: np.broadcast_to(ZERO, s))
        for path, leaf in paths(tree).items()
    }


ZERO = np.float32(0)


@pytest.mark.parametrize("name", RELEASED)
def test_maps_with_nothing_left_over(name):
    tree = RELEASED[name].tree()
    got = initialised((), (), checkpoint(tree), paths(tree))
    assert {p: a.shape for p, a in got.items()} == {p: a.shape for p, a in paths(tree).items()}


def weights(name: str) -> float:
    return sum(math.prod(leaf.shape) for leaf in paths(RELEASED[name].tree()).values()) / 1e6


def test_sizes():
    """8 experts where the published tables count 32; an expert of S/32 has 2.1 million weights."""
    expert = 2 * 512 * 2048 + 2048 + 512
    published = 166.7e6 - 2 * 24 * (expert + 512) - (18291 - 1000) * 513
    assert weights(S32) == pytest.approx(published / 1e6, abs=0.06)
    assert weights(B16) > weights(B16_TUNED) > weights(S32) > weights(S32_TUNED)


@pytest.mark.parametrize("before, after", [(S32, S32_TUNED), (B16, B16_TUNED), (E3, E3_TUNED)])
def test_fine_tuning_at_another_size(before, after):
    """Other positions and classes, and no representation layer where it was left out."""
    source, target = checkpoint(RELEASED[before].tree()), paths(RELEASED[after].tree())
    rules = () if "pre_logits/kernel" in target else (Rule("^pre_logits/", ""),)
    drawn = {path: np.broadcast_to(ZERO, leaf.shape) for path, leaf in target.items()}
    got = initialised(rules, ("^head/",), source, drawn)
    assert {*target} - {*got} == {"head/kernel", "head/bias"}
    assert all(array.shape == target[path].shape for path, array in got.items())


def test_an_ensembles_router_may_be_flat_in_the_file():
    """Experts in a row: the first member's, then the second's."""
    tree = RELEASED[E3].tree()
    source, name = checkpoint(tree), "Encoder/encoderblock_5/Moe/Router/dense/kernel"
    flat = np.arange(512 * 8, dtype=np.float32).reshape(512, 8)
    got = initialised((), (), source | {name: leaf_of(flat)}, paths(tree))[name]
    np.testing.assert_array_equal(got[:, 1, 2], flat[:, 6])


def test_a_small_one_through_files(tmp_path):
    """Random weights, written in the released format, read, mapped: the same weights."""
    config = replace(RELEASED[E3].config, width=16, mlp_dim=8, num_classes=3, num_heads=2)
    shapes = paths(Released(config, 64).tree())
    rng = np.random.default_rng(0)
    weights = {path: rng.random(leaf.shape, np.float32) for path, leaf in shapes.items()}
    files.write(tmp_path / "P.index", {path: leaf_of(array) for path, array in weights.items()})
    got = initialised((), (), files.read(tmp_path / "P").leaves, shapes)
    assert got.keys() == weights.keys()
    assert all(np.array_equal(array, weights[path]) for path, array in got.items())


AUGREG_NAMES = {
    "cls", "embedding/kernel", "Transformer/posembed_input/pos_embedding",
    "Transformer/encoderblock_0/LayerNorm_0/scale", "Transformer/encoderblock_0/LayerNorm_2/bias",
    "Transformer/encoderblock_11/MlpBlock_3/Dense_1/kernel",
    "Transformer/encoderblock_11/MultiHeadDotProductAttention_1/query/kernel",
    "Transformer/encoder_norm/bias", "pre_logits/kernel", "head/kernel",
}  # fmt: skip


def test_a_dense_vit_of_augreg():
    """The names that its .npz files have, onto the tree of a dense ViT."""
    config = variant("ViT-B/16", num_classes=21843)
    tree = jax.eval_shape(lambda: model.init(config, jax.random.key(0), (224, 224, 3)))
    theirs = in_names_of("augreg", checkpoint(tree))
    assert theirs.keys() >= AUGREG_NAMES
    assert not any("Encoder" in path for path in theirs)
    assert layout_of(theirs) is LAYOUTS[0]
    assert in_our_names(theirs).keys() == paths(tree).keys()
    assert initialised((), (), in_our_names(theirs), paths(tree)).keys() == paths(tree).keys()
    assert in_our_names(checkpoint(tree)).keys() == paths(tree).keys()
