"""Parameter counts of every published model, to the last decimal shown, from shapes alone."""

import pytest

from vmoe.model import parameter_count
from vmoe.variants import variant

# Millions of parameters at 224 x 224 pixels with a representation layer and 18,291 classes.
PUBLISHED = {
    ("ViT-S/32", None): 36.5,
    ("V-MoE-S/32", "last-2"): 166.7,
    ("V-MoE-S/32", "every-2"): 296.9,
    ("ViT-B/32", None): 102.1,
    ("V-MoE-B/32", "last-2"): 395.0,
    ("V-MoE-B/32", "every-2"): 980.6,
    ("ViT-B/16", None): 100.5,
    ("V-MoE-B/16", "last-2"): 393.3,
    ("V-MoE-B/16", "every-2"): 979.0,
    ("ViT-L/32", None): 325.3,
    ("V-MoE-L/32", "last-2"): 845.8,
    ("V-MoE-L/32", "every-2"): 3448.2,
    ("ViT-L/16", None): 323.1,
    ("V-MoE-L/16", "last-2"): 843.6,
    ("V-MoE-L/16", "every-2"): 3446.0,
    ("ViT-H/14", None): 655.8,
    ("V-MoE-H/14", "last-5"): 2688.6,
    ("V-MoE-H/14", "every-2"): 7160.8,
}


def millions(name: str, placement: str | None, classes: int) -> float:
    config = variant(name, placement, num_classes=classes)
    return round(parameter_count(config, (224, 224, 3)) / 1e6, 1)


@pytest.mark.parametrize("name, placement", PUBLISHED)
def test_published_count(name, placement):
    assert millions(name, placement, 18_291) == PUBLISHED[name, placement]


def test_the_15b_model_without_allocation():
    """24 MoE blocks, 29,593 classes, no representation layer."""
    config = variant("V-MoE-15B", "every-2")
    assert len(config.moe.layers) == 24
    assert config.representation_size is None
    assert millions("V-MoE-15B", "every-2", 29_593) == 14705.1
